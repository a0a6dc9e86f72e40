"""How long a fit takes as runs, domains and capabilities grow, on one core.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/response/fit_scaling.py

CPU seconds (not wall: the machine may be shared) of the law alone, and with harm, processes, choice by
cross-validation, intervals and 64 posterior draws, on surfaces of the law with 5 % noise.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SHAPES = ((64, 17, 13), (128, 17, 13), (256, 17, 13), (512, 17, 13), (100, 30, 20), (200, 60, 30), (400, 100, 50))


def table(runs: int, domains: int, capabilities: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    v = 1000.0 * np.exp(rng.normal(0.0, 1.0, (runs, domains)))
    a = np.exp(rng.normal(-1.0, 1.5, (capabilities, domains)))
    loss = 1.0 + 3.0 * (1.0 + np.sqrt(v / 1000.0) @ a.T) ** -0.5
    return v, loss + 0.05 * loss.std(axis=0) * rng.standard_normal(loss.shape)


def main() -> None:
    from ideal_proxy.response.model import ResponseModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many problems, the smallest first")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the results")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    for runs, domains, capabilities in SHAPES[: given.shapes]:
        v, loss = table(runs, domains, capabilities)
        seconds = []
        for options in ({"process": "never", "harm": "never", "n_draws": 1}, {}):
            start = time.process_time()
            ResponseModel(**options).fit(v, loss)
            seconds.append(time.process_time() - start)
        rows.append({
            "runs": runs,
            "domains": domains,
            "capabilities": capabilities,
            "law": seconds[0],
            "all": seconds[1],
        })
        print(rows[-1], file=sys.stderr, flush=True)
    document = {
        "command": ["python", *sys.argv],
        "machine": {"platform": platform.platform(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "versions": {p: version(p) for p in ("numpy", "scipy", "scikit-learn")} | {"python": platform.python_version()},
        "rows": rows,
    }
    (given.out / "fit_scaling.json").write_text(json.dumps(document, indent=1) + "\n")
    (given.out / "fit_scaling.md").write_text(page(rows))
    plot(rows, given.out)


def page(rows: list[dict]) -> str:
    head = "| runs | domains | capabilities | law alone, s | all, s |\n|---:|---:|---:|---:|---:|\n"
    return (
        "# How long a fit takes\n\nCPU seconds on one core, each once.\n\n"
        + head
        + "".join(
            f"| {r['runs']} | {r['domains']} | {r['capabilities']} | {r['law']:.2f} | {r['all']:.2f} |\n" for r in rows
        )
    )


def plot(rows: list[dict], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    at = np.arange(len(rows))
    axis.bar(at - 0.2, [r["law"] for r in rows], 0.4, label="law alone, with cross-validation")
    axis.bar(at + 0.2, [r["all"] for r in rows], 0.4, label="with harm, processes, intervals, draws")
    axis.set_yscale("log")
    axis.set_xticks(
        at, [f"{r['runs']} runs\n{r['domains']} domains\n{r['capabilities']} capabilities" for r in rows], fontsize=8
    )
    axis.set_ylabel("CPU seconds, one core")
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    figure.savefig(out / "fit_scaling.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
