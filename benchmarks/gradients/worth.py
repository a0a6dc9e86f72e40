"""What gradients are worth: held-out error of the fit against cost in proxy runs, with and without responses at base.

    python benchmarks/gradients/worth.py --problem sources --size 0.1M --rows 4000 --context 256 --vocabulary 2048 \
        --learning-rate 4e-3 --mixtures 64 --held-out 40 --seeds 3 --train-only
    python benchmarks/gradients/worth.py … the same, with --finished --estimate-seeds 1

Every subset holds the base run and n − 1 other mixtures; both arms fit the same runs, both know Z_j, and are judged on
the mixtures in no subset by RMSE over the standard deviation of the held-out losses, mean over capabilities. The arm
with responses pays for its gradient passes (cost in runs is reported beside n). Differences are paired over subsets:
mean, standard error and the two-sided t-test, plus sign counts. Fits are of the law alone (no harm, no Gaussian
process, one start) in both arms.

With more runs than domains and a fixed total the responses are judged as well: against the slopes that a linear
regression of the losses on all runs' log-volumes gives, apart for the domains of a capability's own name and others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from problem import add_arguments, from_arguments
from scipy.stats import ttest_rel
from truth import judge, mean_of, random_mixtures, reliability

from ideal_proxy.gradients.influence import InfluenceSettings
from ideal_proxy.mixture.draws import apportion
from ideal_proxy.provenance import provenance
from ideal_proxy.response.gradient_rows import Responses
from ideal_proxy.response.model import ResponseModel
from ideal_proxy.store import atomic_write_json, is_complete

Array = NDArray[np.float64]


def error(model: ResponseModel, V: Array, L: Array) -> float:
    """Mean over capabilities of RMSE / standard deviation on held-out mixtures."""
    return float(np.mean(np.sqrt(np.mean((model.predict(V) - L) ** 2, 0)) / L.std(0)))


def regressed_slopes(V: Array, L: Array, base: Array) -> tuple[Array, Array]:
    """Mixing responses (J, D) and their standard errors from a linear regression of losses on log-volumes."""
    q = base / base.sum()
    x = np.log(V / base)
    A = np.hstack([np.ones((len(x), 1)), x - (x @ q)[:, None]])
    covariance, centre = np.linalg.pinv(A.T @ A, rcond=1e-8), np.eye(len(q)) - np.outer(q, np.ones(len(q)))
    slopes = covariance @ A.T @ L
    noise = np.square(L - A @ slopes).sum(0) / (len(x) - len(q))
    unit = np.diag(centre @ covariance[1:, 1:] @ centre.T)
    return (centre @ slopes[1:]).T, np.sqrt(np.outer(noise, unit))


def judge_responses(problem: Any, V: Array, L: Array, estimates: dict[str, Array]) -> dict[str, Any]:
    """Correlation with the regressed slopes and relative error at one scale, with bootstrap intervals over entries."""
    truth, error_JD = regressed_slopes(V, L, problem.base)
    own = np.array([[name.split("/")[0] == c for name in problem.names] for c in problem.references])
    result: dict[str, Any] = {"runs": len(V)}
    for group, mask in {"own": own, "other": ~own}.items():
        result[group] = {"entries": int(mask.sum()), "reliability": reliability(truth[mask], error_JD[mask])}
        for name, M in estimates.items():
            result[group][name] = judge(M, truth, mask, np.random.default_rng(0))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--runs", type=int, nargs="+", default=[2, 4, 6, 8, 12, 18])
    parser.add_argument("--subsets", type=int, default=20)
    parser.add_argument("--mixtures", type=int, default=64, help="to choose subsets from")
    parser.add_argument("--held-out", type=int, default=64, help="further mixtures, in no subset")
    parser.add_argument("--spread", type=float, default=1.2)
    parser.add_argument("--seeds", type=int, default=2, help="seeds that runs rotate over, each with a base proxy")
    parser.add_argument("--total", choices=("fixed", "free"), default="fixed", help="of the mixtures' rows")
    parser.add_argument("--train-only", action="store_true", help="train the proxies and stop")
    parser.add_argument("--estimate-seeds", type=int, default=2, help="base proxies whose responses are averaged")
    parser.add_argument("--finished", action="store_true", help="only mixtures whose runs a stopped call finished")
    parser.add_argument("--methods", nargs="+", default=["implicit ekfac 0.01", "first-order"])
    arguments = parser.parse_args()
    problem, rng = from_arguments(arguments), np.random.default_rng(1)
    seeds = list(range(1, arguments.seeds + 1))
    count = arguments.mixtures + arguments.held_out
    mixtures = random_mixtures(problem.base, count, arguments.spread, rng)
    if arguments.total == "free":  # the fit has to learn both more rows and another mix
        mixtures = [v * np.exp(rng.uniform(-0.5, 0.5)) for v in mixtures]
    V = np.array([apportion(v, round(float(v.sum()))) for v in mixtures], dtype=float)
    seed_of = np.array([seeds[k % len(seeds)] for k in range(len(V))])
    if arguments.finished:
        runs = problem.run_dir / "runs"
        kept = [k for k in range(len(V)) if is_complete(runs / problem.spec(V[k], int(seed_of[k])).id)]
        V, seed_of, arguments.mixtures = V[kept], seed_of[kept], len(kept) - arguments.held_out
    L = problem.losses([(v, int(s)) for v, s in zip(V, seed_of, strict=True)])
    base = problem.losses([(problem.base, s) for s in seeds])
    nothing = problem.losses([(np.zeros_like(problem.base), 0)])[0] if problem.context.warm else None
    if arguments.train_only:
        return

    settings = InfluenceSettings().within(1.5, arguments.rows, len(problem.names) + len(problem.references))
    gathered: dict[str, list[Any]] = {}
    for seed in seeds[: arguments.estimate_seeds]:
        for name, value in problem.estimates(seed, settings, arguments.methods).items():
            gathered.setdefault(name, []).append(value)
    arms: dict[str, tuple[Responses | None, float]] = {"losses only": (None, 0.0)}
    for name in arguments.methods:
        M, se, tokens = mean_of(gathered[name])
        cost = len(gathered[name]) * tokens / problem.training_tokens()
        arms[name] = (Responses(problem.base, M, se, gathered[name][0].q), cost)

    mixed = np.random.default_rng(0).permutation(len(V))  # finished runs are not in a random order
    pool, held = mixed[: arguments.mixtures], mixed[arguments.mixtures :]
    report: dict[str, Any] = {"gradient_cost_in_runs": {k: cost for k, (_, cost) in arms.items()}, "by_runs": {}}
    if arguments.total == "fixed" and len(V) > len(problem.names) + 10:
        matrices = {name: given.matrix for name, (given, _) in arms.items() if given}
        report["responses"] = judge_responses(problem, V, L, matrices)
        print(report["responses"])
    for runs in arguments.runs:
        errors: dict[str, list[float]] = {name: [] for name in arms}
        for subset in range(arguments.subsets):
            chosen = np.random.default_rng([runs, subset]).choice(pool, runs - 1, replace=False)
            fit_V = np.vstack([problem.base[None], V[chosen]])
            fit_L = np.vstack([base[:1], L[chosen]])
            fit_seed = np.concatenate([[seeds[0]], seed_of[chosen]])
            for name, (given, _) in arms.items():
                model = ResponseModel(
                    base=problem.base, available=np.array(problem.context.available), n_draws=2,
                    process="never", harm="never", n_starts=1,
                )  # fmt: skip
                model.fit(fit_V, fit_L, seed_id=fit_seed, baseline_loss=nothing, responses=given)
                errors[name].append(error(model, V[held], L[held]))
        row: dict[str, Any] = {}
        for name, values in errors.items():
            difference = np.subtract(values, errors["losses only"])
            row[name] = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)), "errors": values}
            if name != "losses only":
                test = ttest_rel(values, errors["losses only"])
                row[name] |= {
                    "difference": float(difference.mean()),
                    "standard_error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
                    "p": float(test.pvalue), "better_in": int((difference < 0).sum()),
                }  # fmt: skip
        report["by_runs"][runs] = row
        print(runs, {name: f"{row[name]['mean']:.3f} ± {row[name]['sd']:.3f}" for name in row})
    out = arguments.out or Path(__file__).parent / f"worth_{arguments.problem}.json"
    atomic_write_json(out, {**report, "options": {k: str(v) for k, v in vars(arguments).items()}})
    atomic_write_json(out.with_suffix(".environment.json"), provenance())


if __name__ == "__main__":
    main()
