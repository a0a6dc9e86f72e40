"""Seconds and correctness of the optimiser.

`OMP_NUM_THREADS=1 python benchmarks/speed/optimizer.py` writes optimizer.{json,md,svg} beside it.

Timing: random laws of the form in `docs/how-it-works.md`, budget in tokens kept, repeat cap 4, base of one pass; median
of 5 laws.
Agreement: the objective against a refined grid (n <= 4) and against cvxpy (convex problems).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from explicit_law import random_law
from optimizer_oracles import brute_force, cvxpy_optimum

from ideal_proxy.domains import Domains
from ideal_proxy.optimizer.constraints import Constraints, Problem
from ideal_proxy.optimizer.objective import Objective, RelativeLosses
from ideal_proxy.optimizer.optimum import optimize
from ideal_proxy.optimizer.result import Optimum

RESULTS = Path(__file__).parent
LAWS = 5
KINDS = {
    "mean": (Objective(), False, 0),
    "worst": (Objective(kind="worst"), False, 0),
    "mean, harm": (Objective(), True, 0),
    "worst, harm": (Objective(kind="worst"), True, 0),
    "mean on the 90 % upper bound, 64 draws": (Objective(upper_confidence=0.9), False, 64),
}


def make_problem(rng: np.random.Generator, domains: int, capabilities: int) -> Problem:
    base = rng.uniform(500, 5000, domains)
    names = tuple(f"d{i}" for i in range(domains))
    found = Domains(names=names, base=base, available=base, tokens_per_row=rng.uniform(100, 500, domains))
    return Problem(domains=found, capabilities=tuple(f"c{j}" for j in range(capabilities)))


def timed(law: Any, objective: Objective, constraints: Constraints) -> tuple[Optimum, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = optimize(law, objective, constraints)
    return found, time.perf_counter() - wall, time.process_time() - cpu


def timing() -> list[dict[str, Any]]:
    rows = []
    for kind, (objective, harm, draws) in KINDS.items():
        for domains, capabilities in ((5, 5), (10, 10), (20, 13), (50, 25), (100, 50)):
            seconds, processor, residual, scopes = [], [], [], []
            for seed in range(LAWS):
                rng = np.random.default_rng(seed)
                problem = make_problem(rng, domains, capabilities)
                law = random_law(
                    rng,
                    problem.domains.base,
                    capabilities,
                    available_D=problem.domains.available,
                    harm=harm,
                    draws=draws,
                )
                found, wall, cpu = timed(law, objective, Constraints(problem=problem))
                seconds.append(wall)
                processor.append(cpu)
                residual.append(found.kkt_residual)
                scopes.append(found.scope)
            rows.append({
                "objective": kind,
                "domains": domains,
                "capabilities": capabilities,
                "wall_seconds": float(np.median(seconds)),
                "cpu_seconds": float(np.median(processor)),
                "cpu_seconds_max": float(np.max(processor)),
                "kkt_residual_max": float(np.max(residual)),
                "scopes": sorted(set(scopes)),
            })
            print(rows[-1], flush=True)
    return rows


def agreement() -> list[dict[str, Any]]:
    rows = []
    cases = [("grid", n, harm, kind) for n in (2, 3, 4) for harm in (False, True) for kind in ("mean", "worst")]
    cases += [("cvxpy", n, False, kind) for n in (5, 10) for kind in ("mean", "worst")]
    for oracle, domains, harm, kind in cases:
        differences = []
        for seed in range(10 if oracle == "grid" else 5):
            rng = np.random.default_rng(100 + seed)
            problem = make_problem(rng, domains, domains)
            law = random_law(rng, problem.domains.base, domains, available_D=problem.domains.available, harm=harm)
            constraints = Constraints.from_options({"trust_region": 1.5}, problem)
            if oracle == "cvxpy":
                law.gamma_J, law.alpha_J = np.full(domains, 0.5), np.round(law.alpha_J, 1)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # it says how it approximates powers
                    truth = cvxpy_optimum(law, constraints, kind == "worst")
            else:
                steps = {2: 501, 3: 61, 4: 25}[domains]
                score = (lambda r, _v: r.max(axis=1)) if kind == "worst" else (lambda r, _v: r.mean(axis=1))
                truth = brute_force(law, constraints, score, steps, rounds=20, keep=0.3)
            differences.append(optimize(law, Objective(kind=kind), constraints).objective - truth)
        rows.append({
            "oracle": oracle,
            "domains": domains,
            "harm": harm,
            "objective": kind,
            "problems": len(differences),
            "largest": float(np.max(differences)),
            "smallest": float(np.min(differences)),
        })
        print(rows[-1], flush=True)
    return rows


def fitted() -> list[dict[str, Any]]:
    """The same with a real fit, whose process and harm terms make it non-convex."""
    from ideal_proxy.response.model import ResponseModel

    rows = []
    for domains, capabilities, runs, process in ((5, 5, 30, "auto"), (20, 13, 80, "auto"), (100, 13, 150, "never")):
        rng = np.random.default_rng(0)
        problem = make_problem(rng, domains, capabilities)
        law = random_law(rng, problem.domains.base, capabilities, available_D=problem.domains.available)
        v = problem.domains.base * np.exp(rng.uniform(-1.2, 1.2, (runs, domains)))
        losses = law.losses(v) * (1 + 0.003 * rng.normal(size=(runs, capabilities)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ResponseModel(unit="rows", available=problem.domains.available, process=process, random_state=0)
            model.fit(v, losses)
        constraints = Constraints.from_options({"trust_region": 1.2}, problem)
        truth = RelativeLosses(law, problem)
        best = optimize(law, Objective(), constraints).objective
        for objective in (Objective(), Objective(kind="worst"), Objective(upper_confidence=0.9)):
            found, wall, cpu = timed(model, objective, constraints)
            name = objective.kind + (", 90 % upper bound" if objective.upper_confidence else "")
            rows.append({
                "domains": domains,
                "capabilities": capabilities,
                "runs": runs,
                "process": process,
                "objective": name,
                "wall_seconds": wall,
                "cpu_seconds": cpu,
                "kkt_residual": found.kkt_residual,
                "scope": found.scope,
                "predicted": float(found.relative.mean()),
                "true_mean": float(truth.point(found.volumes)[0].mean()),
                "best_true_mean": best,
            })
            print(rows[-1], flush=True)
    return rows


def plot(rows: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind in KINDS:
        mine = [r for r in rows if r["objective"] == kind]
        axes.loglog([r["domains"] for r in mine], [r["cpu_seconds"] for r in mine], marker="o", label=kind)
    axes.axhline(2, color="0.6", linestyle=":")
    axes.set(xlabel="domains", ylabel="seconds on one core (median of 5 laws)", title="Time to optimise")
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "optimizer.svg", metadata={"Date": None})


def cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5f}" if name in {"predicted", "true_mean", "best_true_mean"} else f"{value:.3g}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def write(result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "optimizer.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["# Optimiser", "", "`OMP_NUM_THREADS=1 python benchmarks/speed/optimizer.py`", ""]
    lines += ["Environment: " + json.dumps(result["environment"]), ""]
    for title, rows in result.items():
        if title == "environment":
            continue
        lines += [f"## {title.capitalize()}", "", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        for row in rows:
            lines.append("| " + " | ".join(cell(name, x) for name, x in row.items()) + " |")
        lines.append("")
    (RESULTS / "optimizer.md").write_text("\n".join(lines))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    environment = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "load_at_start": os.getloadavg()[0],
    }
    result: dict[str, Any] = {"environment": environment}
    result |= {"timing": timing(), "agreement": agreement(), "fitted": fitted()}
    write(result)
    plot(result["timing"])


if __name__ == "__main__":
    main()
