"""`ideal-proxy plan`: ways to search one run file, what each costs here, what is known of it, and which to take."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ideal_proxy.config import SearchConfig, parse_config
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.machine import free_bytes
from ideal_proxy.pipeline.outer_loop import plan_search
from ideal_proxy.pipeline.overrides import override
from ideal_proxy.pipeline.plan import FEW_JUDGED
from ideal_proxy.pipeline.plan_cost import FILL
from ideal_proxy.sections import SIZES, size_name
from ideal_proxy.terminal import Reporter, duration, paragraph, sentence, table

RANK = 16  # of low-rank updates, where all weights do not fit memory or hours
OF_MODEL = {"gguf", "revision", "trust_remote_code"}  # keys of the run file that go with its model
OF_TRAINING = {"lora_rank", "learning_rate", "dtype", "imitations"}  # and with its search on that model
SCRATCH, LADDER, TARGET = "proxies from scratch", "a ladder", "the target itself"
KNOWN = {  # measured; the files name the commands
    SCRATCH: "at 12 times the proxies' size 1.00 % was left of 2.1 % promised, and 2 of 5 changes lay inside their "
    "intervals (benchmarks/target/scale_up_sft5_10M.md); on a pretrained model, SmolLM2-135M, +9.4 % was promised and "
    "-4.6 % [-14.7, +5.4] came (benchmarks/proof/real_smollm2.md)",
    LADDER: "on surfaces of known truth it gained nothing over one size at equal cost; on trained proxies it was not "
    "measured (benchmarks/target/ladder.md)",
    TARGET: "no step to another size is left open, and what the model knows already counts; on SmolLM2-135M it gained "
    "+3.2 % [+2.1, +4.2], +2.4 % promised (benchmarks/proof/on_target.md)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to search, with its plan."""

    name: str  # of the way
    lines: dict[str, Any]  # of the run file that set it
    plan: dict[str, Any] | None  # as `search --dry-run` has it; None where it cannot be done
    why_not: str = ""  # why it cannot be done; "" where it can
    memory: float | None = None  # bytes of a worker, by count; None where that is not known

    def to_json(self) -> dict[str, Any]:
        """Give what the command prints as JSON."""
        total = None if self.plan is None else self.plan["total"]
        return {
            "name": self.name, "set": self.lines, "known": KNOWN[self.name], "why_not": self.why_not or None,
            "memory_bytes": self.memory, "total": total,
            "fraction": None if self.plan is None else self.plan["fraction"],
        }  # fmt: skip


def compare_ways(config: SearchConfig, model: str | None, max_hours: float | None, reporter: Reporter) -> list[Way]:
    """Plan every way to search a run file; nothing is trained but what measures speed."""
    size = config.proxy.size or "1M"
    sizes, last = config.swarm.sizes or _ladder_to(size), {}
    if config.swarm.sizes and config.proxy.model:
        last = {"model": config.proxy.model, "lora_rank": config.proxy.lora_rank}
    ways: list[tuple[str, dict[str, Any]]] = [
        (SCRATCH, {"proxy": {"size": size}}),
        (LADDER, {"proxy": last or {"size": sizes[-1]}, "swarm": {"sizes": list(sizes)}}),
    ]
    model = model or config.proxy.model
    if model is not None:
        whole: dict[str, Any] = {"mode": "target", "model": model}
        if model == config.proxy.model:
            given = OF_MODEL | (OF_TRAINING if config.proxy.mode == "target" else set())
            whole |= config.proxy.model_dump(include=given, exclude_defaults=True)
        ranked = {"lora_rank": RANK} | whole  # a rank that the run file has stays
        ways += [(TARGET, {"proxy": whole})] + [(TARGET, {"proxy": ranked})] * (ranked != whole)
        if config.swarm.judge_rows is None:  # many reference rows take longer than the training
            ways.append((TARGET, {"proxy": ranked, "swarm": {"judge_rows": FEW_JUDGED}}))
    found: list[Way] = []
    for name, lines in ways:
        before = found[-1] if found and found[-1].name == name == TARGET else None
        if before and not before.why_not:
            break  # it fits: fewer weights, or fewer reference rows, are not needed
        if before and before.plan and "swarm" in lines:
            break  # it does not fit the memory, which fewer reference rows would not change
        reporter.note(f"planning: {name}")
        found = [way for way in found if way.name != name] + [_plan(config, name, lines, max_hours)]
    return found


def _ladder_to(size: str) -> tuple[str, ...]:
    """Give the sizes of a ladder that ends with a size; two at least, three at most."""
    place = max(SIZES.index(size), 1)
    return SIZES[max(0, place - 2) : place + 1]


def _plan(config: SearchConfig, name: str, lines: dict[str, Any], max_hours: float | None) -> Way:
    raw = config.model_dump(mode="json")
    scratch = () if "model" in lines["proxy"] else ("vocabulary", "warm_fraction")
    of_any = ("context", "fraction", "allow_truncation", "device", *scratch)
    kept = {key: raw["proxy"][key] for key in of_any}
    raw["swarm"] |= {"sizes": [], "lower_runs": []}
    raw["proxy"] = kept | lines["proxy"]
    raw["swarm"] |= lines.get("swarm", {})
    try:
        settings = override(parse_config(raw, where=name), max_hours=max_hours)
        with tempfile.TemporaryDirectory() as folder:
            plan = plan_search(settings, Path(folder) / "plan", Reporter(quiet=True))
    except (UsageError, UserError) as error:
        return Way(name=name, lines=lines, plan=None, why_not=str(error))
    memory = plan["worker_bytes"] or 4.0 * plan["parameters"] + 12.0 * (
        plan["trainable_parameters"] or plan["parameters"]
    )
    free = free_bytes(plan["device"])
    if free is not None and memory > FILL * free:
        why = f"a worker needs {memory / 2**30:.1f} GiB and {FILL * free / 2**30:.1f} GiB are free"
        return Way(name=name, lines=lines, plan=plan, why_not=why, memory=memory)
    return Way(name=name, lines=lines, plan=plan, memory=memory)


def recommend(ways: Sequence[Way]) -> tuple[Way, str]:
    """Choose one, and say why in a sentence."""
    can = {way.name: way for way in ways if not way.why_not}
    if not can:
        reasons = "; ".join(f"{way.name}: {way.why_not}" for way in ways)
        raise UserError(f"none of the ways to search can be gone here: {reasons}")
    if (way := can.get(TARGET)) is not None:
        return way, "the model that will be trained is at hand and fits: it needs no stand-in, and knows what it knows"
    if SCRATCH in can and any(way.name == TARGET for way in ways):
        return can[SCRATCH], (
            "the model itself cannot be searched here. Proxies from scratch say little of one that is pretrained: run "
            "scale-up --baseline, and keep base unless the proposal beats it"
        )
    if LADDER in can and SCRATCH in can:
        ladder, scratch = (can[name].plan or {} for name in (LADDER, SCRATCH))
        share = ladder["total"]["seconds"] / max(scratch["total"]["seconds"], 1e-9)
        why = "a ladder gained nothing at equal cost where it was measured"
        if share < 1:
            why += f"; here it saves {1 - share:.0%} of the time, and fewer runs of one size save it too"
        return can[SCRATCH], why
    name = next(iter(can))
    return can[name], "nothing else can be done here"


def _sizes(way: Way) -> str:
    sizes = way.lines.get("swarm", {}).get("sizes")
    return f" ({', '.join(map(size_name, sizes))})" if sizes else ""


def ways_text(ways: Sequence[Way], chosen: Way, why: str, config: Path) -> str:
    """Lay out the ways, the recommendation and the lines that set it, in 80 columns."""
    rows = []
    for way in ways:
        if way.plan is None:
            rows.append((way.name, "-", "-", "-", "-"))
            continue
        memory = "-" if way.memory is None else f"{way.memory / 2**30:.1f} GiB"
        total = way.plan["total"]
        rows.append((
            way.name, f"{total['runs']}", f"{way.plan['fraction']:.0%}", duration(total["seconds"]), memory,
        ))  # fmt: skip
    lines = [table("Ways to search", ("way", "runs", "rows", "time", "memory"), rows), ""]
    speeds = ", ".join(f"{way.plan['tokens_per_second']:,.0f} for {way.name}" for way in ways if way.plan)
    lines += [paragraph(
        "Runs and times are the most there can be: a sweep of rates, all rounds, every pair of the check; the rows are "
        f"those of one run, of base's. Measured just now, tokens a second of one worker: {speeds or 'none'}; a busy "
        "machine looks slower than it is."
    ), ""]  # fmt: skip
    lines += [paragraph(f"{way.name}{_sizes(way)}: {KNOWN[way.name]}.") for way in ways]
    lines += [paragraph(f"{way.name} cannot be done: {way.why_not}.") for way in ways if way.why_not]
    lines += ["", paragraph(sentence(f"take {chosen.name}: {why}")), f"In {config}:", ""]
    return "\n".join([*lines, yaml.safe_dump(chosen.lines, default_flow_style=None, sort_keys=False).rstrip()])
