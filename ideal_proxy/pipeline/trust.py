"""Do larger proxies rank mixtures as the small ones do? Three mixtures far apart, trained at one larger size.

The check before a scale-up: base and two mixtures that the swarm ran, the farthest from base and from each other, are
trained again at a larger size on the same rows in the same order. Three mixtures make three pairs a capability; a pair
counts as clear where its losses differ by more than two standard deviations of such a difference at both sizes (the
noise of one run is the fit's; at the larger size it is taken to be the same share of the loss). Three mixtures show a
gross change of ranking and nothing finer.

Legend: M the three mixtures, J capabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.design import spread_mixtures
from ideal_proxy.pipeline.encoding import scratch_products
from ideal_proxy.pipeline.evidence import Evidence
from ideal_proxy.pipeline.laboratory import Laboratory
from ideal_proxy.pipeline.plan import TRUST_MIXTURES, Plan
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.stage import Stage
from ideal_proxy.pipeline.status_record import StatusRecord
from ideal_proxy.proxy import RATES
from ideal_proxy.response import combine
from ideal_proxy.store import atomic_write_json, read_json
from ideal_proxy.terminal import Reporter

Array = NDArray[np.float64]

AGREES, DISAGREES, UNCLEAR = "agrees", "disagrees", "cannot tell"
LEAST_CLEAR = 3  # pairs beyond noise, over all capabilities
LEAST_SHARE = 0.8  # of the clear pairs in the same order
CLEAR = 2.0  # standard deviations of a difference


def check_trust(
    config: SearchConfig,
    prepared: Prepared,
    plan: Plan,
    laboratory: Laboratory,
    noise: Array,
    rate: float,
    folder: Path,
    reporter: Reporter,
    record: StatusRecord,
) -> dict[str, Any] | None:
    """Train three of the swarm's mixtures at `verify.larger_size` and compare the rankings."""
    # What is trained lies under `trust/` of the run directory; a check that was interrupted goes on there.
    larger = config.verify.larger_size
    if larger is None:
        return None
    path = folder / "trust" / "trust.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        return found
    table = laboratory.evidence()
    chosen = far_apart(table, prepared.domains.base)
    volumes = table.volumes[chosen]
    smaller = config.proxy.size
    assert smaller is not None  # the run file was refused otherwise
    scaled = rate * RATES[larger][1] / RATES[smaller][1]
    parameters, products = scratch_products(larger, prepared.vocabulary)
    settings = config.model_copy(update={
        "gradients": "none", "proxy": config.proxy.model_copy(update={"size": larger}),
        "capabilities": tuple(c.model_copy(update={"metric": None}) for c in config.capabilities),
    })  # fmt: skip
    sizes = replace(plan, rates=RATES[larger], parameters=parameters, products=products)
    try:
        with Laboratory(
            settings, prepared, sizes, folder / "trust", reporter, record, laboratory.tracker, Stage.TRUST_CHECK
        ) as bigger:
            bigger.warm_start()
            losses = bigger.measure(volumes, int(table.seeds[chosen[0]]), scaled)
            cost = bigger.cost()
    except UserError as error:
        reporter.note(f"warning: the trust check failed: {error}")
        return {"failed": str(error)}
    weights = [capability.weight for capability in config.capabilities]
    found = compare(
        table.losses[chosen], losses, noise, names=prepared.capability_names, sizes=(smaller, larger),
        kind=config.objective.kind, weights=weights,
    ) | {
        "runs": [table.ids[k] for k in chosen],
        "rows": [dict(zip(prepared.domains.names, np.rint(v).astype(int).tolist(), strict=True)) for v in volumes],
        "learning_rate": scaled, "cost": cost,
    }  # fmt: skip
    atomic_write_json(path, found)
    reporter.note(f"trust check: {found['sentence']}")
    return found


def far_apart(table: Evidence, base: Array) -> NDArray[np.int64]:
    """Choose base and two mixtures far from it and from each other, all of one seed."""
    distance = np.abs(np.log1p(table.volumes) - np.log1p(base)).max(axis=1)
    first = int(distance.argmin())
    same = np.flatnonzero((table.seeds == table.seeds[first]) & table.trained)
    order = np.concatenate([[first], same[same != first]])
    picked = spread_mixtures(table.volumes[order], TRUST_MIXTURES - 1)
    if len(picked) < TRUST_MIXTURES - 1:
        raise UserError("the trust check needs three mixtures run with one seed; raise swarm.runs")
    return np.asarray(order[[0, *picked]], dtype=np.int64)


def compare(
    small: Array,
    large: Array,
    noise: Array,
    *,
    names: Sequence[str],
    sizes: tuple[str, str],
    kind: Any = "mean",
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Compare how two sizes rank the same mixtures."""
    pairs = list(combinations(range(len(small)), 2))
    relative = noise / small[0]
    entries = []
    for j, name in enumerate(names):
        differences = [(small[a, j] - small[b, j], large[a, j] - large[b, j]) for a, b in pairs]
        least = CLEAR * np.sqrt(2) * relative[j] * np.array([small[0, j], large[0, j]])
        clear = [bool(abs(s) > least[0] and abs(t) > least[1]) for s, t in differences]
        agree = [bool(s * t > 0) for s, t in differences]
        entries.append({
            "name": name, "pairs": len(pairs), "agree": sum(agree), "clear": sum(clear),
            "clear_agree": sum(a for a, c in zip(agree, clear, strict=True) if c),
            "rank_correlation": _rank_correlation(small[:, j], large[:, j]),
        })  # fmt: skip
    objective = [combine(losses / losses[0], kind, weights) for losses in (small, large)]
    total: dict[str, Any] = {key: sum(e[key] for e in entries) for key in ("pairs", "agree", "clear", "clear_agree")}
    if total["clear"] < LEAST_CLEAR:
        answer = UNCLEAR
    else:
        answer = AGREES if total["clear_agree"] >= LEAST_SHARE * total["clear"] else DISAGREES
    found = {
        "sizes": list(sizes), **total, "capabilities": entries,
        "objective": {
            "small": objective[0].tolist(), "large": objective[1].tolist(),
            "rank_correlation": _rank_correlation(objective[0], objective[1]),
        },
        "losses": {"small": small.tolist(), "large": large.tolist()},
        "answer": answer,
    }  # fmt: skip
    return found | {"sentence": _sentence(found)}


def _sentence(found: dict[str, Any]) -> str:
    """Say what a comparison means."""
    small, large = found["sizes"]
    same = (
        f"{found['agree']} of {found['pairs']} pairs of losses are in the same order, {found['clear_agree']} of the "
        f"{found['clear']} that are beyond noise"
    )
    if found["answer"] == UNCLEAR:
        return (
            f"{large} and {small} proxies cannot be compared on three mixtures: only {found['clear']} of "
            f"{found['pairs']} pairs of losses differ by more than noise"
        )
    if found["answer"] == AGREES:
        return (
            f"{large} proxies rank three spread mixtures as the {small} ones do ({same}): nothing here says that the "
            "answer changes with size"
        )
    return (
        f"{large} proxies rank three spread mixtures otherwise than the {small} ones ({same}): repeat the search with "
        f"proxy.size {large} before you scale this mixture up"
    )


def _rank_correlation(a: Array, b: Array) -> float | None:
    """Spearman's; None where one side ranks nothing."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)
