"""Results as text that fits 80 columns: the plan, the outcome of a search, what `apply` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ideal_proxy.mixture import IMPROVES, Applied, MixtureFile, kept_base
from ideal_proxy.pipeline import folded
from ideal_proxy.report.steps import proxy_text, shares_table, steps_text
from ideal_proxy.terminal import (
    change_text,
    count_text,
    duration,
    interval_text,
    paragraph,
    sentence,
    signed,
    step,
    table,
)

MOST_LINES = 10  # of a table on the first screen
MOST_WARNINGS = 2


def result_screen(result: dict[str, Any], folder: Path) -> str:
    """Lay out on one screen of 80 columns what a search found: verdict, volumes, who gains, who pays, what next."""
    kept = result["verdict"]["answer"] != IMPROVES
    domains = sorted(result["domains"], key=lambda entry: -abs(entry["share"] - entry["base_share"]))[:MOST_LINES]
    judged = sorted(result["capabilities"], key=lambda entry: -abs(_verified(entry)))[:MOST_LINES]
    judged = [entry for entry in result["capabilities"] if entry in judged]
    left = len(result["domains"]) + len(result["capabilities"]) - len(domains) - len(judged)
    warnings = result["warnings"]
    more = [
        *([f"{count_text(left, 'line')} more"] if left else []),
        *([f"{count_text(len(warnings) - MOST_WARNINGS, 'warning')} more"] if len(warnings) > MOST_WARNINGS else []),
        "all numbers",
    ]
    lines = [
        paragraph(f"Verdict: {result['verdict']['sentence']}."),
        "",
        table(
            "Proposal (not adopted: the mixture file keeps the base)" if kept else "Rows to train on",
            ("domain", "base", "proposal", "change", "tokens", "as good"),
            [
                (entry["name"], f"{entry['base_rows']:,}", f"{entry['proposal_rows']:,}", change_text(entry["change"]),
                 f"{entry['share']:.1%}", _moves(entry))
                for entry in result["domains"] if entry in domains
            ],
        ),
        "",
        *_changes([entry for entry in judged if not entry.get("metric")]),
        *_score_changes([(entry, entry["metric"]) for entry in judged if entry.get("metric")]),
        *(paragraph(text) for text in (_who_gains(result), sentence(who_pays(result))) if text),
        *([paragraph(_unprotected(result["free"]))] if result.get("free") else []),
        *([paragraph(ladder_text(result["ladder"]))] if result.get("ladder") else []),
        *([paragraph(reuse_text(result["reuse"]))] if result.get("reuse") else []),
        *([paragraph(f"{result['imitated']['text']}.")] if result.get("imitated") else []),
        *(paragraph(f"Warning: {warning}.") for warning in warnings[:MOST_WARNINGS]),
        "",
        step("next: ", f"report {folder}", "one page to look at, with sliders"),
        *([] if kept else [step("      ", f"apply {folder / 'mixture.json'} --out DIR", "the rows to train on")]),
        step("      ", f"show --full {folder}", ", ".join(more)),
    ]  # fmt: skip
    return "\n".join(lines)


def _changes(judged: list[dict[str, Any]]) -> list[str]:
    """Lay out what became of the losses that judge, where there are any."""
    rows = [
        (entry["name"], signed(entry["verified"]["value"] - 1, ".1%"),
         interval_text(entry["verified"], "+.1%", less=1), says(entry))
        for entry in judged
    ]  # fmt: skip
    header = ("capability", "change", "interval", "says")
    return [table("Loss against base, on fresh runs and unseen rows", header, rows)] if rows else []


def _score_changes(judged: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Lay out what became of the scores that judge in place of losses, where there are any."""
    rows = [
        (entry["name"] if m["higher_is_better"] else f"{entry['name']} (less is better)", f"{m['base']:.4g}",
         f"{m['proposal']:.4g}", signed(m["verified"]["value"], ".3g"), interval_text(m["verified"], "+.3g"),
         says(entry))
        for entry, m in judged
    ]  # fmt: skip
    header = ("capability", "base", "proposal", "change", "interval", "says")
    return [table("Scores, which judge here in place of the loss, on fresh runs", header, rows)] if rows else []


def _verified(entry: dict[str, Any]) -> float:
    """Return the verified change of what judges a capability; a metric's over its scale."""
    if metric := entry.get("metric"):
        return float(metric["verified"]["value"] / metric["scale"])
    return float(entry["verified"]["value"] - 1)


def result_tables(result: dict[str, Any], folder: Path) -> str:
    """Lay out the outcome of a search."""
    kept = result["verdict"]["answer"] != IMPROVES
    predicted = result["predicted_gain"]
    domains = [
        (
            entry["name"],
            f"{entry['base_rows']:,}",
            f"{entry['proposal_rows']:,}",
            change_text(entry["change"]),
            f"{entry['share']:.1%}",
            f"{entry['repeat']:.2f}x",
            _moves(entry),
        )
        for entry in result["domains"]
    ]
    capabilities = [
        (
            entry["name"],
            f"{entry['base_loss']:.3f}",
            signed(entry["predicted"]["value"] - 1, ".1%"),
            signed(entry["verified"]["value"] - 1, ".1%"),
            interval_text(entry["verified"], "+.1%", less=1),
            says(entry),
        )
        for entry in result["capabilities"]
    ]
    heading = "Proposal (not adopted: the mixture file keeps the base)" if kept else "Rows to train on"
    lines = [
        paragraph(f"Verdict: {result['verdict']['sentence']}."),
        *([paragraph(ladder_text(result["ladder"]))] if result.get("ladder") else []),
        "",
        table(heading, ("domain", "base", "proposal", "change", "tokens", "repeat", "as good"), domains),
        paragraph(_unsure(result)),
        paragraph(steps_text(result["steps"])),
        "",
        shares_table("What each domain is of it", result["domains"]),
        "",
        table(
            "Reference loss against base, on fresh runs and unseen rows",
            ("capability", "at base", "predicted", "verified", "interval", "says"),
            capabilities,
        ),
        paragraph(SAYS),
        *(paragraph(text) for text in (_who_gains(result), _forgotten(result)) if text),
        *([paragraph(sentence(price))] if (price := who_pays(result)) else []),
        "",
        *_scores(result),
        *_free(result),
        paragraph(
            f"Predicted gain {signed(predicted['value'], '.2%')} {interval_text(predicted)} "
            "(corrected for having been selected, as no single capability above is, so their mean may promise more). "
            "Noise of one run: "
            f"{result['noise']['run']:.2%} of {_unit(result)}, of a seed: {result['noise']['seed']:.2%}."
        ),
        paragraph(
            f"Optimum: {result['optimum']['scope']}; "
            f"limits reached: {'; '.join(result['optimum']['active']) or 'none'}."
        ),
        *([paragraph(f"{result['gradients']['note']}.")] if result.get("gradients") else []),
        *([paragraph(f"{result['imitated']['text']}.")] if result.get("imitated") else []),
        *(paragraph(f"Warning: {warning}.") for warning in folded(result["warnings"])),
        paragraph(
            f"{result['cost']['runs']} runs of {proxy_text(result['proxy'])}, {_passes(result['cost'])}"
            f"{count_text(result['cost']['rounds'], 'round')}, "
            f"{duration(result['cost']['seconds'])} of training (workers added up)."
        ),
        *(paragraph(sentence(text)) for text in result.get("replay", ())),
        *([paragraph(reuse_text(result["reuse"]))] if result.get("reuse") else []),
        f"Mixture file: {folder / 'mixture.json'}",
        step("next: ", f"report {folder}", "one page to look at and to show"),
        *([] if kept else [step("      ", f"apply {folder / 'mixture.json'} --out DIR", "the rows to train on")]),
    ]
    return "\n".join(lines)


def _who_gains(result: dict[str, Any]) -> str:
    """Say what each capability adds to the objective's gain."""
    added = [(entry["name"], entry["adds"]) for entry in result["capabilities"] if "adds" in entry]
    ordered = sorted(added, key=lambda pair: -pair[1])
    parts = ", ".join(f"{name} {signed(value, '.2%')}" for name, value in ordered if value)
    return f"The gain is made of: {parts} (points of the objective)." if parts else ""


def _forgotten(result: dict[str, Any]) -> str:
    """Compare pretrained proxies with the model as it was before any fine-tuning."""
    entries = [entry for entry in result["capabilities"] if "base_against_start" in entry]
    if not entries or not result["proxy"].get("model"):
        return ""
    parts = [
        f"{e['name']} {signed(e['base_against_start'] - 1, '.1%')}, then "
        f"{signed(e['base_against_start'] * e['verified']['value'] - 1, '.1%')}"
        for e in entries
    ]
    return f"Loss against the model before fine-tuning, with base, then with the proposal: {'; '.join(parts)}."


SAYS = (
    "Better and worse are sure: all capabilities and all looks together err at most once in twenty on either side. "
    "Held: surely within what protect and must_not_drop allow."
)


def says(entry: dict[str, Any]) -> str:
    """Say what the check tells of a capability: its change, and its protection where that is more."""
    change = str(entry.get("change", "open")).removeprefix("surely ")
    if entry.get("protection") == "surely above tolerance":
        return f"{change}, too much"
    return f"{change}, held" if entry.get("protection") == "within tolerance" and change != "better" else change


def two_answers(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Lay the protected and the free answer side by side: gain, volumes, prices, all predicted; () where they agree."""
    free = result.get("free")
    if not free:
        return []
    gains = [
        f"{signed(gain['value'], '.1%')} {interval_text(gain, '+.1%')}"
        for gain in (result["predicted_gain"], free["predicted_gain"])
    ]
    rows = [
        (f"rows of {e['name']}", f"{e['proposal_rows']:,}", f"{free['rows'][e['name']]:,}") for e in result["domains"]
    ]
    prices = [
        (
            f"change of {e['name']}",
            signed(_judged(e), ".1%"),
            signed(free["capabilities"][e["name"]]["value"] - 1, ".1%"),
        )
        for e in result["capabilities"]
    ]
    return [("gain", *gains), *rows, *prices]  # type: ignore[list-item]


def _judged(entry: dict[str, Any]) -> float:
    """Return the predicted change of what judges a capability; a metric's over its scale, above 0 is worse."""
    if metric := entry.get("metric"):
        return float(metric["predicted"]["value"] / metric["scale"] * (-1 if metric["higher_is_better"] else 1))
    return float(entry["predicted"]["value"] - 1)


def _free(result: dict[str, Any]) -> list[str]:
    if not (rows := two_answers(result)):
        return []
    note = (
        "Only the protected one was checked; the mixture file names the free one beside it. protect: none in the run "
        "file lifts protection."
    )
    return [
        table("Protected and free answer of the same fit, predicted", ("", "protected", "free"), rows),
        paragraph(note),
        "",
    ]


def _unprotected(free: dict[str, Any]) -> str:
    """Say what the answer without protection promises, and who would pay most for it."""
    name, most = max(free["capabilities"].items(), key=lambda item: item[1]["value"])
    return (
        f"Without protection {signed(free['predicted_gain']['value'], '.1%')} is predicted, {name} at "
        f"{signed(most['value'] - 1, '.1%')}; "
        "show --full has both answers."
    )


def who_pays(result: dict[str, Any]) -> str:
    """Name the capabilities that the proposal makes worse beyond doubt; a mean gain hides them."""
    worse = [
        f"{entry['name']} ({entry['verified']['value'] - 1:+.1%} loss, at least {entry['verified']['lower'] - 1:+.1%})"
        for entry in result["capabilities"]
        if entry["verified"]["lower"] > 1
    ]
    for entry in result["capabilities"]:
        if metric := entry.get("metric"):
            change, up = metric["verified"], metric["higher_is_better"]
            least = change["upper"] if up else change["lower"]
            if least < 0 if up else least > 0:
                worse.append(f"{entry['name']} ({change['value']:+.3g} by its metric, at least {least:+.3g})")
    return f"the price: {', '.join(worse)}; protect and must_not_drop in the run file limit it" if worse else ""


def _moves(entry: dict[str, Any]) -> str:
    """Say between which volumes a domain makes no difference."""
    low, high = (f"{round(end):,}" for end in entry["moves"])
    return low if low == high else f"{low}-{high}"


def _unsure(result: dict[str, Any]) -> str:
    """Say how to read the ranges, and which volumes do not matter or cannot be told."""
    leeway = result["leeway"]
    unseen = f"a loss the check could not see ({leeway['slack']:.2%})"
    parts = [f"As good: how far one volume may go, the others following, at {unseen}."]
    if leeway["open"]:
        parts.append(f"Within the limits the volume of {', '.join(leeway['open'])} does not matter.")
    if leeway["unsettled"]:
        parts.append(
            f"As far as can be told, base's volume of {', '.join(leeway['unsettled'])} is as good, each by itself."
        )
    return " ".join(parts)


def _unit(result: dict[str, Any]) -> str:
    return "a loss or a score's scale" if any(e.get("metric") for e in result["capabilities"]) else "the loss"


def _scores(result: dict[str, Any]) -> list[str]:
    """Lay out what the metrics gave, in their own units, where there are any."""
    judged = [(entry["name"], entry["metric"]) for entry in result["capabilities"] if entry.get("metric")]
    if not judged:
        return []
    rows = [
        (
            name, "higher" if m["higher_is_better"] else "lower", f"{m['base']:.4g}", f"{m['proposal']:.4g}",
            signed(m["predicted"]["value"], ".3g"), signed(m["verified"]["value"], ".3g"),
            interval_text(m["verified"], "+.3g"),
        )
        for name, m in judged
    ]  # fmt: skip
    header = ("capability", "better", "at base", "proposal", "predicted", "verified", "interval")
    scales = "; ".join(f"{name}: {m['scale']:.3g}" for name, m in judged)
    return [
        table("Metrics, which judge instead of the loss (difference from base)", header, rows, left=2),
        "",
        paragraph(f"A metric's difference counts as this share of a loss: difference over scale ({scales})."),
    ]


def ladder_text(found: dict[str, Any] | None) -> str:
    """Say what a ladder's lower sizes told of the last."""
    if not found:
        return ""
    lower = ", ".join(f"{count_text(runs, 'run')} of {name}" for name, runs in found["lower"].items())
    return f"Ladder: {lower} below those of {found['last']}. " + "".join(f"{text}. " for text in found["trust"]).strip()


def reuse_text(found: dict[str, Any] | None) -> str:
    """Say which evidence is whose."""
    if not found:
        return ""
    earlier = ", ".join(f"{count_text(e['runs'], 'run')} of {e['from']}" for e in found["runs"])
    changed = [text for text in found["changes"] if not text.endswith(": the same rows")]
    return (
        f"Evidence: {earlier}, and this search's own; {found['new_runs']} new in its first round, where a fresh search "
        f"has {found['fresh_runs']}. "
        + "".join(f"{text[:1].upper()}{text[1:]}. " for text in found.get("trust", ()))
        + (f"Since then: {'; '.join(changed)}." if changed else "The data are the same.")
    )


def _passes(cost: dict[str, Any]) -> str:
    """Say what gradients cost, where there were any."""
    count = cost.get("gradient_passes", 0)
    return f"{count} gradient passes (as much as {cost['gradient_runs']:.1f} runs), " if count else ""


def applied_values(mixture: MixtureFile, applied: Applied) -> dict[str, Any]:
    """Collect what `apply` wrote."""
    return {
        "folder": str(applied.folder),
        "files": [path.name for path in applied.files],
        "manifest": applied.manifest,
        "rows": applied.rows,
        "row_format": applied.row_format,
        "kept_base": kept_base(mixture),
        "already_there": applied.already_there,
        "domains": [
            {"name": d.name, "rows": applied.domain_rows[d.name], "available": d.available, "repeat": d.repeat}
            for d in mixture.domains
        ],
    }


def applied_table(values: dict[str, Any]) -> str:
    """Lay out what `apply` wrote."""
    rows = [(e["name"], f"{e['rows']:,}", f"{e['available']:,}", f"{e['repeat']:.2f}x") for e in values["domains"]]
    state = "were already there" if values["already_there"] else "written"
    files = ", ".join([*values["files"][:3], *(["..."] if len(values["files"]) > 3 else []), values["manifest"]])
    form = "Every row is written as messages, with one schema; columns beside the conversation are left out."
    return "\n".join([
        table("Rows of the mixture", ("domain", "rows", "available", "repeat"), rows),
        paragraph(f"{values['rows']:,} rows {state} in training order: {values['folder']} ({files})"),
        *([paragraph(sentence(values["kept_base"]))] if values["kept_base"] else []),
        *([paragraph(form)] if values["row_format"] == "chat" else []),
    ])  # fmt: skip
