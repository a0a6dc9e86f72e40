"""Gradient estimates of mixing responses against re-runs: what is true, what is only up to scale, what is unresolved.

    python benchmarks/gradients/truth.py --problem demo --rows 3000 --learning-rate 1e-3 --seeds 10 --estimate-seeds 5
    python benchmarks/gradients/truth.py --problem sft5 --size 1M --rows 4000 --context 256 --vocabulary 2048 \
        --learning-rate 1e-3 --seeds 4

Truth: symmetric re-runs at a fixed total with common random numbers, mean over seeds, error from seeds. Estimates: mean
over the base proxies of the first of those seeds. Diagonal and off-diagonal are judged apart after one global scale
(least squares over all entries): Pearson, Spearman, relative error with 90 % bootstrap intervals over entries.
Reliability is the share of a group's variance that is not the truth's own noise; under 0.5 the group is `unresolved`.
Then at least 40 random mixtures at the base total: rank correlation of predicted with actual loss changes, a
capability at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from problem import add_arguments, from_arguments
from scipy.stats import pearsonr, spearmanr

from ideal_proxy.gradients.finite import finite_responses
from ideal_proxy.gradients.influence import InfluenceSettings
from ideal_proxy.gradients.records import ResponseMatrix
from ideal_proxy.provenance import provenance
from ideal_proxy.store import atomic_write_json

Array = NDArray[np.float64]
METHODS = ["first-order", "product ekfac", "implicit kfac 0.01"]
METHODS += [f"implicit ekfac {damping:g}" for damping in (1e-3, 1e-2, 1e-1, 1.0, 10.0)]


def reliability(truth: Array, error: Array) -> float:
    """1 − noise variance / variance of the group's entries; NaN where there is no error."""
    return float(1 - np.mean(np.square(error)) / np.var(truth, ddof=1))


def judge(estimate: Array, truth: Array, group: NDArray[np.bool_], rng: np.random.Generator) -> dict[str, Any]:
    """Agreement of one group after the global scale, with bootstrap intervals over the group's entries."""
    scale = float((estimate * truth).sum() / (estimate**2).sum())
    x, y = scale * estimate[group], truth[group]
    result: dict[str, Any] = {"scale": scale}
    for name, statistic in (
        ("pearson", lambda a, b: pearsonr(a, b)[0]),
        ("spearman", lambda a, b: spearmanr(a, b)[0]),
        ("relative_error", lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)),
    ):
        draws = [rng.integers(len(x), size=len(x)) for _ in range(500)]
        values = [statistic(x[d], y[d]) for d in draws if len(set(d)) > 2]
        result[name] = [float(statistic(x, y)), *(float(np.nanquantile(values, p)) for p in (0.05, 0.95))]
    return result


def mean_of(parts: list[ResponseMatrix]) -> tuple[Array, Array, float]:
    """Mean over seeds, jackknife error of the mean, and cost in tokens of one."""
    M = np.mean([part.M for part in parts], 0)
    return M, np.sqrt(np.mean([part.se**2 for part in parts], 0) / len(parts)), parts[0].cost.gradient_tokens


def random_mixtures(base: Array, count: int, spread: float, rng: np.random.Generator) -> list[Array]:
    """Mixtures at the base total, log-volumes uniform within ±spread of base."""
    mixtures = base * np.exp(rng.uniform(-spread, spread, (count, len(base))))
    return list(mixtures * (base.sum() / mixtures.sum(1, keepdims=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--estimate-seeds", type=int, default=4)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--mixtures", type=int, default=40)
    parser.add_argument("--spread", type=float, default=0.7)
    parser.add_argument("--draw", type=int, default=0, help="random state of the mixtures; gradient_worth.py has 1")
    parser.add_argument("--mixture-seeds", type=int, default=None, help="seeds that the mixtures rotate over")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--unrolled", nargs="*", choices=("rows", "weights"), default=["rows", "weights"])
    arguments = parser.parse_args()
    problem, rng = from_arguments(arguments), np.random.default_rng(1)
    seeds = list(range(1, arguments.seeds + 1))
    names, capabilities = problem.names, tuple(problem.references)
    truth = finite_responses(
        problem.losses, names, capabilities, problem.base, seeds=seeds, step=arguments.step,
        tokens_per_run=problem.training_tokens(),
    )  # fmt: skip

    settings = InfluenceSettings().within(1.5, arguments.rows, len(names) + len(capabilities))
    estimates: dict[str, list[ResponseMatrix]] = {}
    for seed in seeds[: arguments.estimate_seeds]:
        for name, value in problem.estimates(seed, settings, arguments.methods).items():
            estimates.setdefault(name, []).append(value)
        for of in arguments.unrolled:
            name = "unrolled" if of == "rows" else "unrolled, by weights"
            estimates.setdefault(name, []).append(problem.unrolled(seed, of))

    own = np.array([[d.split("/")[0] == c for d in names] for c in capabilities])
    groups = {"diagonal": own, "off-diagonal": ~own}
    report: dict[str, Any] = {"names": names, "capabilities": capabilities, "base": problem.base.tolist(), "groups": {}}
    for group, mask in groups.items():
        trust = reliability(truth.M[mask], truth.se[mask])
        report["groups"][group] = {
            "entries": int(mask.sum()), "reliability": trust, "resolved": trust >= 0.5,
            "beyond_5_errors": float(np.mean(np.abs(truth.M[mask]) > 5 * truth.se[mask])),
        }  # fmt: skip

    draw = np.random.default_rng(arguments.draw)
    mixtures = random_mixtures(problem.base, arguments.mixtures, arguments.spread, draw)
    turns = seeds[: arguments.mixture_seeds]
    base_losses = problem.losses([(problem.base, seed) for seed in turns])
    actual = problem.losses([(v, turns[k % len(turns)]) for k, v in enumerate(mixtures)])
    change = actual - base_losses[np.arange(len(mixtures)) % len(turns)]
    moves = np.log(np.array(mixtures) / problem.base)
    report["methods"] = {}
    for name, parts in {"finite": [truth], **estimates}.items():
        M, se, tokens = mean_of(parts) if name != "finite" else (truth.M, truth.se, truth.cost.gradient_tokens)
        predicted = moves @ M.T
        entry: dict[str, Any] = {
            "cost_in_runs": tokens / problem.training_tokens(), "seconds": parts[0].cost.seconds,
            "M": M.tolist(), "se": se.tolist(),
        }  # fmt: skip
        if name != "finite":
            entry |= {group: judge(M, truth.M, mask, rng) for group, mask in groups.items() if mask.sum() > 2}
        ranks = [float(spearmanr(predicted[:, j], change[:, j])[0]) for j in range(len(capabilities))]
        resampled = [rng.integers(len(moves), size=len(moves)) for _ in range(300)]
        spread = [
            float(np.nanstd([spearmanr(predicted[d, j], change[d, j])[0] for d in resampled]))
            for j in range(len(capabilities))
        ]
        entry["rank_of_changes"] = dict(zip(capabilities, zip(ranks, spread, strict=True), strict=True))
        report["methods"][name] = entry
        line = {g: entry[g]["pearson"][0] for g in groups if g in entry}
        print(f"{name:24s}", {k: round(v, 2) for k, v in line.items()}, "ranks", np.round(ranks, 2).tolist())
    print(json.dumps(report["groups"], indent=1))
    out = arguments.out or Path(__file__).parent / f"truth_{arguments.problem}.json"
    options = {k: str(v) for k, v in vars(arguments).items()}
    atomic_write_json(out, {**report, "options": options, "train": dataclasses.asdict(problem.settings)})
    atomic_write_json(out.with_suffix(".environment.json"), provenance())


if __name__ == "__main__":
    main()
