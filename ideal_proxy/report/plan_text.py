"""What the terminal shows of a plan, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ideal_proxy.pipeline import proxies_of
from ideal_proxy.report.steps import proxy_text, shares_table, steps_text
from ideal_proxy.response import LEAST_OVERLAP, SMALLER_SIZE
from ideal_proxy.terminal import count_text, duration, money, paragraph, table


def plan_tables(plan: dict[str, Any]) -> str:
    """Lay out the plan of a search."""
    elsewhere, priced = plan.get("elsewhere"), plan["price"] is not None
    rows = [
        (
            proxies_of(stage["size"]) if "size" in stage else stage["name"], f"{stage['runs']}",
            f"{stage['steps']:,}", f"{stage['tokens']:,}", f"{stage['flops']:.1e}",
            duration(stage["seconds"]), *([money(stage["cost"], "")] if priced else []),
        )
        for stage in plan["stages"]
    ]  # fmt: skip
    total, currency = plan["total"], plan["currency"]
    header = ("stage", "runs", "steps", "tokens", "FLOPs", "time there" if elsewhere else "time here")
    if elsewhere:
        speed = (
            f"{plan['devices']} device{'s' * (plan['devices'] > 1)} elsewhere at {elsewhere['utilisation']:.0%} of "
            f"{elsewhere['device_flops']:.3g} FLOP/s"
        )
    else:
        many = "s" * (plan["workers"] > 1)
        speed = f"{plan['workers']} worker{many} ({plan['tokens_per_second']:,.0f} tokens/s measured for one)"
    further = (
        f" (up to {more} more where the sweep's best rate lies on its edge)"
        if (more := plan.get("further_runs"))
        else ""
    )
    lines = [
        paragraph(
            f"{_planned_runs(plan)}{further} on {plan['fraction']:.0%} of the volumes, {total['tokens']:,} tokens, "
            f"{total['flops']:.2g} FLOPs, about {duration(total['seconds'])} with {speed}."
        )
    ]
    if plan["lower"]:
        lower = ", ".join(f"{of['runs']} of {proxies_of(of['size'])}" for of in plan["lower"])
        share = sum(stage["seconds"] for stage in plan["stages"] if "size" in stage) / total["seconds"]
        lines.append(paragraph(
            f"Ladder: {lower} cost {share:.0%} of it and tell where a response bends. They are expected to "
            f"show {SMALLER_SIZE} of every change at {plan['size'] or Path(plan['model']).name}, where "
            f"{plan['runs']} runs say how much, and the check is."
        ))  # fmt: skip
    context = plan["context"]
    cut = "; ".join(f"{name}: {count_text(rows, 'row')} cut" for name, rows in context["cut"].items())
    lines.append(paragraph(f"Context: {context['tokens']:,} tokens, {context['reason']}{f' ({cut})' * bool(cut)}."))
    if plan.get("metric_seconds"):
        took = f"{plan['metric_seconds']:.2g} s"
        told = f"Metrics: {took} on an untrained proxy, which every run adds to its training."
        if plan.get("own_trainer"):
            told = (
                f"Your trainer: {took} for a few rows, metrics included, which every run adds; row by row it is taken "
                "to be as fast as the built-in one, so ask `status` again after the first runs."
            )
        lines.append(paragraph(told))
    if priced:
        lines.append(paragraph(
            f"Cost: {money(total['cost'], currency)} for {total['device_hours']:.2g} device-hours at "
            f"{plan['price']:g} {currency} each."
        ))  # fmt: skip
    if plan["worker_bytes"] and not elsewhere:
        lines.append(paragraph(
            f"Memory: about {plan['worker_bytes'] / 2**30:.1f} GiB for each worker, beside the token arrays, which "
            "they share."
        ))  # fmt: skip
    least = f"One round and {plan['pairs']} pairs may do: about {duration(plan['least_seconds'])}"
    least += f", {money(plan['least_cost'], currency)}. " if priced else ". "
    end = "This plan was not kept" if elsewhere else "Nothing was trained; drop --dry-run to start"
    lines.append(paragraph(steps_text(plan["full_size"])))
    lines.append(paragraph(f"{least}{end}."))
    stages = table("Plan", (*header, *([currency] if priced else [])), rows)
    return "\n".join([stages, "", shares_table("What each domain is of base", plan["domains"]), "", *lines])


def _planned_runs(plan: dict[str, Any]) -> str:
    """Count the runs of each size; what is imitated is trained by nobody."""
    lower = [stage for stage in plan["stages"] if "size" in stage]
    last = f"{plan['total']['runs'] - sum(stage['runs'] for stage in lower)} of {proxy_text(plan)}"
    sizes = ", ".join([*(f"{stage['runs']} of {proxies_of(stage['size'])}" for stage in lower), last])
    text = f"{plan['total']['runs']} runs at most: {sizes}" if lower else last.replace(" of ", " runs at most of ", 1)
    if not plan["imitations"]:
        return text
    few = f" (fewer than {LEAST_OVERLAP}, which cannot prove themselves)" * (plan["imitations"] < LEAST_OVERLAP)
    return f"{text}, and {count_text(plan['imitations'], 'imitation')}{few},"
