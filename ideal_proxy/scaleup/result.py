"""What a full-size training shows: observed losses against predicted ones, and the gain over base.

Ratios are loss on the mixture over loss on base, on verify rows (those the search never saw). Legend: S seeds,
J capabilities, N_j reference rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ideal_proxy.errors import shortened
from ideal_proxy.mixture import CapabilityResult, MixtureFile
from ideal_proxy.pipeline import PairedLosses, PairedScores, judge, sentence
from ideal_proxy.response import (
    LARGER_SIZE,
    OTHER_SIZE,
    PRETRAINED,
    SAME_FRACTION,
    Combination,
    EvidenceKind,
    Yardstick,
    between_sizes,
    combine,
)
from ideal_proxy.scaleup.model import ModelSpec, same_model
from ideal_proxy.scaleup.run import RunLosses
from ideal_proxy.scaleup.scores import ArmScores
from ideal_proxy.sections import SIZES
from ideal_proxy.terminal import duration, interval_text, paragraph, table
from ideal_proxy.terminal import sentence as as_sentence

FORMAT = "ideal-proxy/scale-up/1"
LEVEL = 0.9  # of the predicted intervals, and of the observed ones beside them


def compare(
    mixture: MixtureFile,
    runs: Sequence[RunLosses],
    base_runs: Sequence[RunLosses] | None,
    verify: Sequence[NDArray[np.bool_]],
    *,
    kind: Combination = "mean",
    weights: Sequence[float] | None = None,
    min_gain: float = 0.005,
    scores: ArmScores | None = None,
    step: EvidenceKind | None = None,
) -> dict[str, Any]:
    """Compare what was observed with what was predicted, `step` being what a model of this size shows of it."""
    names = [capability.name for capability in mixture.capabilities]
    entries = []
    promised = predicted_ratios(mixture, step)
    for j, capability in enumerate(mixture.capabilities):
        rows = judged_rows(verify[j])
        before = [run.before[names[j]].select(rows).mean for run in runs]
        after = [run.after[names[j]].select(rows).mean for run in runs]
        entry: dict[str, Any] = {
            "name": names[j],
            "before": float(np.mean(before)),
            "after": float(np.mean(after)),
            "after_all_rows": float(np.mean([run.after[names[j]].mean for run in runs])),
            "after_by_seed": after,
            "verify_rows": int(rows.sum()),
        }
        if base_runs:
            base = [run.after[names[j]].select(rows).mean for run in base_runs]
            ratios = np.array(after) / np.array(base)
            entry |= {"base_after": float(np.mean(base)), "base_after_by_seed": base, "ratio": _interval(ratios)}
        entry |= _promise(capability, promised[j], entry.get("ratio"), entry["after"])
        if scores is not None and j in scores.named:
            entry["metric"] = _scored(scores, j)
        entries.append(entry)
    told = None if step is None else {"factor": step.factor, "spread": round(step.of_one, 2), "error": step.error}
    result: dict[str, Any] = {"capabilities": entries, "step": told}
    inside = [entry["inside"] for entry in entries if entry["inside"] is not None]
    result["inside"] = {"count": sum(inside), "of": len(inside)}
    if base_runs:
        result["gain"] = gain_over(
            names, runs, base_runs, verify, kind=kind, weights=weights, min_gain=min_gain, scores=scores
        )
    return result


def _scored(scores: ArmScores, j: int) -> dict[str, Any]:
    """What a capability's metric gave, in its own unit."""
    after = np.array([run.score for run in scores.mixture[j]])
    entry: dict[str, Any] = {
        "named": scores.named[j], "scale": float(scores.yardstick.scale[j]), "after": float(after.mean()),
        "after_by_seed": after.tolist(), "higher_is_better": scores.yardstick.kinds[j] == "score",
    }  # fmt: skip
    if scores.base:
        base = np.array([run.score for run in scores.base[j]])
        entry |= {"base_after": float(base.mean()), "base_after_by_seed": base.tolist()}
        entry["change"] = _interval(after - base)
    return entry


def judged_rows(verify: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows that a verdict is about: those that the search never saw; all where there are none."""
    return verify if verify.any() else np.ones_like(verify)


def _interval(ratios: NDArray[np.float64]) -> dict[str, Any]:
    """Mean over seeds with a two-sided t interval; one seed has none."""
    value = float(ratios.mean())
    if len(ratios) < 2:
        return {"value": value, "lower": None, "upper": None}
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(ratios) - 1) * ratios.std(ddof=1) / np.sqrt(len(ratios)))
    return {"value": value, "lower": value - half, "upper": value + half}


def size_step(mixture: MixtureFile, spec: ModelSpec, fraction: float = 1.0) -> EvidenceKind | None:
    """Say how much of the proxies' changes a model is expected to show; None at the search's size, rank and share."""
    found = (mixture.provenance.get(key) for key in ("proxy", "transfer"))  # strangers' files hold anything there
    proxy, transfer = (told if isinstance(told, dict) else {} for told in found)
    size, model = proxy.get("size"), proxy.get("model")
    if not (size or model) or transfer.get("at_full_size"):
        return None
    whole = mixture.proxy_fraction is None or abs(mixture.proxy_fraction / fraction - 1.0) <= SAME_FRACTION
    itself = None if whole else OTHER_SIZE
    if model is not None and same_model(str(model), spec.name):
        return OTHER_SIZE if proxy.get("lora_rank") != spec.lora else itself
    if size in SIZES and model is None and spec.scratch is None:
        return PRETRAINED
    if size not in SIZES or spec.scratch not in SIZES:
        return LARGER_SIZE
    return itself if size == spec.scratch else between_sizes(spec.scratch, size)


def predicted_ratios(mixture: MixtureFile, step: EvidenceKind | None) -> list[dict[str, float | None] | None]:
    """Predicted losses relative to base, a capability an entry, at the size that the step leads to.

    Log changes are taken times its factor. Beside the fit's error stand the factor's, common and the capability's own,
    and what a capability does alone, a share of the mean change of all.
    """  # noqa: DOC201
    levels = [(c.base_loss or 0.0, c.predicted_loss or 0.0) for c in mixture.capabilities]
    change = [np.log(predicted / base) for base, predicted in levels if min(base, predicted) > 0]
    alone = 0.0 if step is None or not change else step.error * float(np.sqrt(np.mean(np.square(change))))
    z = float(stats.norm.ppf((1 + LEVEL) / 2))

    def ratios(c: CapabilityResult, base: float, predicted: float) -> dict[str, float | None]:
        value, bounds = predicted / base, {"lower": c.predicted_lower, "upper": c.predicted_upper}
        found = {side: None if bound is None else bound / base for side, bound in bounds.items()}
        if step is None:
            return {"value": value, **found}
        middle = step.factor * np.log(value)
        told: dict[str, float | None] = {"value": float(np.exp(middle)), "lower": None, "upper": None}
        for (side, bound), sign in zip(found.items(), (-1, 1), strict=True):
            if bound is not None and bound > 0:
                fit = step.factor * np.log(bound / value) / z
                wide = np.sqrt(fit**2 + (step.of_one * np.log(value)) ** 2 + alone**2)
                told[side] = float(np.exp(middle + sign * z * wide))
        return told

    pairs = zip(mixture.capabilities, levels, strict=True)
    return [ratios(c, *level) if min(level) > 0 else None for c, level in pairs]


def _promise(
    capability: CapabilityResult, promised: dict[str, float | None] | None, ratio: dict[str, Any] | None, after: float
) -> dict[str, Any]:
    """Put the prediction, relative to base, beside what was seen; without base only absolute losses can be shown."""
    promise: dict[str, Any] = {"predicted": promised, "inside": None, "error": None}
    if capability.predicted_loss is None:
        return promise
    promise["predicted_loss"] = capability.predicted_loss
    if promised is None or promised["value"] is None:
        return promise
    if ratio is None:
        promise["after_minus_predicted_loss"] = after - capability.predicted_loss
        return promise
    promise["error"] = ratio["value"] - promised["value"]
    if promised["lower"] is not None and promised["upper"] is not None:
        promise["inside"] = bool(promised["lower"] <= ratio["value"] <= promised["upper"])
    return promise


def gain_over(
    names: Sequence[str],
    runs: Sequence[RunLosses],
    base_runs: Sequence[RunLosses],
    verify: Sequence[NDArray[np.bool_]],
    *,
    kind: Combination = "mean",
    weights: Sequence[float] | None = None,
    min_gain: float = 0.005,
    scores: ArmScores | None = None,
) -> dict[str, Any]:
    """Judge the pairs as the search judges its own, in one look: by seeds and by the choice of verify rows."""
    paired: list[PairedLosses | PairedScores] = []
    yardstick = Yardstick.of_losses(len(names)) if scores is None else scores.yardstick
    for j, name in enumerate(names):
        if scores is not None and j in scores.named:
            paired.append(PairedScores.of(scores.base[j], scores.mixture[j]))
            continue
        rows = judged_rows(verify[j])
        sides = ([run.after[name].select(rows) for run in side] for side in (base_runs, runs))
        paired.append(PairedLosses.of(*sides))
    if len(runs) < 2:
        base, proposal = (np.array([getattr(e, side).sum() for e in paired]) for side in ("base", "proposal"))
        ratios = yardstick.relative(proposal, base)
        value = 1 - float(combine(ratios, kind, weights))
        return {
            "value": value,
            "lower": None,
            "upper": None,
            "pairs": 1,
            "answer": None,
            "sentence": f"gain {value:+.2%} on one seed; an interval needs --seeds 2 or more",
        }
    verdict = judge(paired, yardstick=yardstick, kind=kind, weights=weights, min_gain=min_gain)
    return {
        **asdict(verdict.gain),
        "pairs": verdict.pairs,
        "answer": verdict.answer,
        "gains_by_seed": list(verdict.gains_by_seed),
        "pairs_needed": verdict.pairs_needed,
        "sentence": sentence(
            verdict, names, min_gain=min_gain, judged="on unseen reference rows" if scores is None else "by the metrics"
        ),
    }


def scale_up_tables(result: dict[str, Any], folder: str) -> str:
    """Lay out the outcome of a scale-up in 80 columns."""
    with_base = result["gain"] is not None
    header = ["capability", "before", "after"] + (["base", "change"] if with_base else []) + ["predicted", "inside"]
    rows = []
    for entry in result["capabilities"]:
        cells = [entry["name"], f"{entry['before']:.3f}", f"{entry['after']:.3f}"]
        if with_base:
            cells += [f"{entry['base_after']:.3f}", f"{entry['ratio']['value'] - 1:+.1%}"]
        predicted = entry["predicted"]
        shown = "-"
        if predicted is not None:
            shown = f"{predicted['value'] - 1:+.1%}"
            if predicted["lower"] is not None:
                shown += f" {interval_text(predicted, '+.1%', less=1.0)}"
        inside = {None: "-", True: "yes", False: "no"}[entry["inside"]]
        rows.append([*cells, shown, inside])
    size, model = result["parameters"], result["model"].rstrip("/").rsplit("/", 1)[-1]
    million = f"{size / 1e6:.1f}M" if size >= 1e5 else f"{size:,}"
    lines = [
        table(
            f"Reference loss, nats per supervised token ({model}, {million} parameters, "
            f"{result['rows']:,} rows, {duration(result['seconds'])} of training)",
            header,
            rows,
        ),
        "",
    ]
    if scored := [entry for entry in result["capabilities"] if "metric" in entry]:
        lines += [_score_table(scored, with_base=with_base), ""]
    if step := result.get("step"):
        lines.append(paragraph(
            f"Predicted: the search's changes times {step['factor']:g} ± {step['spread']:g}, which capabilities at "
            "another size, rank or share of the rows were seen to show; besides, one may miss by "
            f"{step['error']:.0%} of the mean change."
        ))  # fmt: skip
    if with_base:
        lines.append(paragraph(f"Gain over base: {result['gain']['sentence']}."))
    elif result.get("is_base"):
        lines.append(paragraph("The mixture is the base itself, so no gain was predicted or is checked."))
    else:
        lines.append(paragraph("Base was not trained: --baseline compares with it, and checks the prediction."))
    if result.get("guard"):
        lines.append(paragraph(f"Answers: {result['guard']['sentence']}."))
    if result.get("refine"):
        lines += ["", *_refine_tables(result["refine"])]
    lines.append(f"Models and {folder}/result.json written.")
    return "\n".join(lines)


def _score_table(entries: Sequence[dict[str, Any]], *, with_base: bool) -> str:
    """Lay out what the metrics gave; they judge instead of the loss."""
    rows = []
    for entry in entries:
        found = entry["metric"]
        cells = [entry["name"], shortened(found["named"], 24), f"{found['after']:.3g}"]
        if with_base:
            change = found["change"]
            ends = "" if change["lower"] is None else f" {interval_text(change, '+.3g')}"
            cells += [f"{found['base_after']:.3g}", f"{change['value']:+.3g}{ends}"]
        rows.append(cells)
    header = ["capability", "metric", "after", *(["base", "change"] if with_base else [])]
    return table("Metrics, which judge instead of the loss", header, rows)


def _refine_tables(refined: dict[str, Any]) -> list[str]:
    """Lay out the iterations: what each was predicted to gain over the mixture it started from, and what it gained."""

    def shown(gain: dict[str, Any] | None) -> str:
        if gain is None:
            return "-"
        text = f"{100 * gain['value']:+.2f}"
        return text if gain["lower"] is None else f"{text} [{100 * gain['lower']:+.2f},{100 * gain['upper']:+.2f}]"

    rows = [
        (
            f"{entry['iteration']}{'*' if entry['accepted'] else ''}",
            str(entry["parent"]["iteration"]),
            shown(entry["predicted"]["gain_over_parent"]),
            shown(entry["observed"]["gain_over_parent"]),
            shown(entry["observed"]["gain_over_base"]),
        )
        for entry in refined["iterations"]
    ]
    lines = []
    if rows:
        header = ("step", "from", "predicted", "over parent", "over base")
        lines += [table("Refine: gain in %, verify rows (* kept)", header, rows), ""]
    return [*lines, paragraph(as_sentence(refined["sentence"]))]
