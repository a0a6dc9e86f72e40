"""How often the check finds a true gain, and how often it finds one that is not there.

    python benchmarks/verdict/sequential.py [--paths 100000]

Pairs of known truth: the gain of a pair is 1 % of gain (or none) plus noise of 1 %, normal or of a gamma law with a
negative skew (a run now and then fails badly). Verify rows add an error that all pairs of a search share. What the
swarm knows beforehand of the scatter has 4 degrees of freedom and is right, half or twice the truth (as a standard
deviation). Rules: the product's (`pipeline/sequential`), with and without its stop for futility; what it was before
(level divided over three looks, a t interval); and two that were tried. Then whole checks of five capabilities by
`judge`: the objective gains, the fifth capability's loss truly rises or stays, the scatter of a pair is 1 % for each
and what is known of it is right. Writes `sequential.json` and `sequential.md`, intervals binomial (95 %).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ideal_proxy.pipeline.sequential import FUTILE, Spread, boundary, moderated
from ideal_proxy.pipeline.verdict import IMPROVES, Known, PairedLosses, Verdict, judge

Array = NDArray[np.float64]
LOOKS = (3, 5, 8)
HERE = Path(__file__).parent
CASES = [  # skew of a pair, known scatter over true, error by rows over the scatter of a pair, degrees of freedom
    (0.0, 1.0, 0.0, 4.0), (0.0, 0.5, 0.0, 4.0), (0.0, 2.0, 0.0, 4.0), (0.0, 0.5, 0.1, 4.0), (0.0, 2.0, 0.1, 4.0),
    (-0.5, 1.0, 0.1, 4.0), (-0.5, 0.5, 0.1, 4.0), (-0.5, 2.0, 0.1, 4.0),
    (-1.0, 1.0, 0.1, 4.0), (-1.0, 0.5, 0.1, 4.0), (-1.0, 2.0, 0.1, 4.0),
    (-2.0, 1.0, 0.1, 4.0), (-2.0, 0.5, 0.1, 4.0), (-2.0, 2.0, 0.1, 4.0), (0.0, 1.0, 0.2, 4.0), (-1.0, 0.5, 0.2, 4.0),
    (0.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 2.0), (0.0, 1.0, 0.0, 3.0),
]  # fmt: skip
Rule = Callable[[Array, Array, float, float], tuple[Array, Array]]


def noise(skew: float, paths: int, seed: int) -> Array:
    """Draw unit noise for every pair, (P, 8)."""
    rng = np.random.default_rng(seed)
    if not skew:
        return rng.standard_normal((paths, LOOKS[-1]))
    shape = 4 / skew**2
    return -(rng.gamma(shape, 1, (paths, LOOKS[-1])) - shape) / np.sqrt(shape)


def product(gains: Array, known: Array, degrees: float, rows: float, *, stop: bool = True) -> tuple[Array, Array]:
    """Apply the product's rule: found, and pairs used."""
    edges, prior = boundary(LOOKS, degrees), Spread(known, degrees)
    found, ended = np.zeros(len(gains), dtype=bool), np.zeros(len(gains), dtype=bool)
    used = np.full(len(gains), float(LOOKS[-1]))
    for look in LOOKS:
        mean = gains[:, :look].mean(axis=1)
        variance = moderated(gains[:, :look].var(axis=1, ddof=1), look - 1, prior)
        success = ~ended & (mean > edges.half_width(look, variance, rows))
        hopeless = np.zeros_like(ended)
        if stop and look < LOOKS[-1]:
            left = LOOKS[-1] - look
            expected = mean + left / LOOKS[-1] * np.sqrt(variance / look)
            missing = edges.half_width(LOOKS[-1], variance, rows) - expected
            hopeless = ~ended & ~success & (stats.norm.sf(missing * LOOKS[-1] / np.sqrt(variance * left)) < FUTILE)
        used[(success | hopeless) & ~ended] = look
        found |= success
        ended |= success | hopeless
    return found, used


def divided(gains: Array, _known: Array, _degrees: float, rows: float) -> tuple[Array, Array]:
    """Apply the rule before: a t interval at each look, the level divided by three."""
    found, used = np.zeros(len(gains), dtype=bool), np.full(len(gains), float(LOOKS[-1]))
    for look in LOOKS:
        half = np.hypot(
            stats.t.ppf(1 - 0.05 / 3, look - 1) * gains[:, :look].std(axis=1, ddof=1) / np.sqrt(look),
            stats.norm.ppf(1 - 0.05 / 3) * rows,
        )
        success = ~found & (gains[:, :look].mean(axis=1) > half)
        used[success] = look
        found |= success
    return found, used


def johnson(gains: Array, known: Array, degrees: float, rows: float) -> tuple[Array, Array]:
    """One look at 8 pairs, the boundary moved by the pairs' own skew (Johnson 1978), calibrated on normal noise."""
    count = LOOKS[-1]

    def statistic(x: Array) -> tuple[Array, Array, Array]:
        deviation = x - x.mean(axis=1, keepdims=True)
        skew = (deviation**3).mean(axis=1) / (deviation**2).mean(axis=1) ** 1.5
        error = np.sqrt(moderated(x.var(axis=1, ddof=1), count - 1, Spread(known, degrees)) / count)
        return x.mean(axis=1), error, 1 / (6 * np.sqrt(count)) * np.clip(skew, -1, 1)

    mean, error, tilt = statistic(noise(0.0, len(gains), 99))
    low, high = 1.0, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        rate = (mean / error > middle - tilt * (1 + 2 * middle**2)).mean()
        low, high = (middle, high) if rate > 0.05 else (low, middle)
    mean, error, tilt = statistic(gains)
    found = mean > np.hypot((low - tilt * (1 + 2 * low**2)) * error, 1.645 * rows)
    return found, np.full(len(gains), float(count))


def larger(gains: Array, known: Array, degrees: float, rows: float) -> tuple[Array, Array]:
    """One look at 8 pairs, the larger of pooled and known variance, calibrated on normal noise."""
    count = LOOKS[-1]

    def statistic(x: Array, prior: Array) -> tuple[Array, Array]:
        pooled = (degrees * prior + (count - 1) * x.var(axis=1, ddof=1)) / (degrees + count - 1)
        return x.mean(axis=1), np.sqrt(np.maximum(pooled, prior) / count)

    mean, error = statistic(
        noise(0.0, len(gains), 99), np.random.default_rng(98).chisquare(degrees, len(gains)) / degrees
    )
    factor = np.quantile(mean / error, 0.95)
    mean, error = statistic(gains, known)
    return mean > np.hypot(factor * error, 1.645 * rows), np.full(len(gains), float(count))


RULES: dict[str, Rule] = {
    "product": product, "without the stop": partial(product, stop=False), "level divided by 3": divided,
    "Johnson's skew": johnson, "larger variance": larger,
}  # fmt: skip


def run(paths: int) -> list[dict[str, object]]:
    """Judge every case by every rule, without and with a gain."""
    lines: list[dict[str, object]] = []
    for skew, ratio, rows, degrees in CASES:
        pairs, rng = noise(skew, paths, 1), np.random.default_rng(2)
        offset = rows * rng.standard_normal((paths, 1))
        known = ratio**2 * (rng.chisquare(degrees, paths) / degrees if degrees else np.ones(paths))
        for name, rule in RULES.items():
            if not degrees and name in ("Johnson's skew", "larger variance"):
                continue
            entry: dict[str, object] = {
                "rule": name, "skew": skew, "known": ratio, "rows": rows, "degrees": degrees, "paths": paths
            }  # fmt: skip
            for truth in (0.0, 1.0):
                found, used = rule(pairs + truth + offset, known, degrees, rows)
                interval = stats.binomtest(int(found.sum()), paths).proportion_ci()
                entry["found" if truth else "false"] = [float(found.mean()), interval.low, interval.high]
                entry["pairs" if truth else "pairs without gain"] = float(used.mean())
            lines.append(entry)
    return lines


PROTECTED = [  # true rise of the fifth capability, protect, must_not_drop
    (0.03, None, 0.01), (0.01, None, 0.01), (0.0, None, 0.02), (0.01, None, 0.02),
    (0.0, 0.02, None), (0.02, 0.02, None), (0.03, 0.02, None), (0.04, 0.02, None), (0.06, 0.02, None),
]  # fmt: skip


def check(seed: int, rise: float, protect: float | None, proof: float | None) -> Verdict:
    """Run one check look by look: four capabilities 5 % better, the fifth as it is said; scatter 1 % each."""
    rng = np.random.default_rng(seed)
    truth = np.array([0.95] * 4 + [1 + rise])
    noise = 0.01 / 2**0.5 * rng.standard_normal((2, LOOKS[-1], 5))
    variance = 0.01**2 * rng.chisquare(4, 6) / 4
    known = Known(Spread(variance[0] / 5, 4.0), Spread(variance[1:], 4.0))
    for look in LOOKS:
        losses = [
            PairedLosses(1 + noise[0, :look, j : j + 1], truth[j] + noise[1, :look, j : j + 1], np.ones(1))
            for j in range(5)
        ]
        verdict = judge(
            losses, tolerances=[protect] * 5, must_not_drop=[None] * 4 + [proof], looks=LOOKS, known=known
        )  # fmt: skip
        if not verdict.go_on:
            break
    return verdict


def protected(checks: int) -> str:
    """Count how checks of protected capabilities end, as a table."""
    shown = "| true rise | protect | must_not_drop | improves, % | of these not proven, % | surely above, % | pairs |\n"
    shown += "|---" * 7 + "|\n"
    for rise, protect, proof in PROTECTED:
        found = [check(seed, rise, protect, proof) for seed in range(checks)]
        improves = [v for v in found if v.answer == IMPROVES]
        cells = []
        for count, of in (
            (len(improves), checks), (sum(4 in v.unproven for v in improves), len(improves)),
            (sum(4 in v.dropped for v in found), checks),
        ):  # fmt: skip
            interval = stats.binomtest(count, of).proportion_ci() if of else None
            cells.append(
                f"{100 * count / of:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else "-"
            )
        limits = " | ".join("-" if x is None else f"{x:.0%}" for x in (protect, proof))
        shown += f"| {rise:.0%} | {limits} | {' | '.join(cells)} | {np.mean([v.pairs for v in found]):.1f} |\n"
    return shown


def table(lines: list[dict[str, object]]) -> str:
    """Write the table."""
    shown = (
        "| skew | known | d.f. | rows | rule | found, % | false alarms, % | pairs with / without gain |\n"
        + "|---" * 8
        + "|\n"
    )
    for e in lines:
        found, false = (
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in e[key]))  # type: ignore[attr-defined]
            for key in ("found", "false")
        )
        shown += (
            f"| {e['skew']:g} | {e['known']:g} | {e['degrees']:g} | {e['rows']:g} | {e['rule']} | {found} | {false} "
            f"| {e['pairs']:.1f} / {e['pairs without gain']:.1f} |\n"
        )
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=100_000)
    parser.add_argument("--checks", type=int, default=2_000)
    options = parser.parse_args()
    lines = run(options.paths)
    (HERE / "sequential.json").write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")
    text = table(lines) + f"\n{options.checks} checks a line:\n\n" + protected(options.checks)
    print(text)
    head = (__doc__ or "").split("\n\n")
    (HERE / "sequential.md").write_text(
        f"# The sequential check\n\n{head[0]}\n\n```\n{head[1].strip()}\n```\n\n{head[2]}\n\n"
        "Known: the scatter known beforehand over the true one. Rows: error by the verify rows over a pair's scatter. "
        "d.f.: what it was known with.\n\n" + text
    )
