"""Does a search of 200 domains, 50 capabilities and 2,000 runs still answer in seconds?

    python benchmarks/faults/load.py

`status` reads a run directory with 2,000 finished runs of 200 domains and 50 capabilities; `fit` is the response law
alone (no forms, one start, 8 draws) on as many runs; `report` writes numbers, figures and page of such a search, its
law fitted to 300 of the runs; `queue` hands 1,000 runs to 64 simulated workers, of which one in ten is lost on the
way. CPU seconds of all cores, which a busy machine does not change much.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "swarm")]
RESULT = Path(__file__).parent / "load"
RUNS, DOMAINS, CAPABILITIES = 2_000, 200, 50


def status(folder: Path) -> str:
    """Look at a search with all its runs."""
    from ideal_proxy.pipeline.status import read_status, status_text

    found = read_status(folder)
    assert sum(found["complete"].values()) == RUNS
    return status_text(found, folder).splitlines()[0]


def write_runs(folder: Path) -> None:
    """Write finished runs as a worker leaves them."""
    from ideal_proxy.store import MARKER

    folder.mkdir()
    (folder / "config.yaml").write_text("name: load\n")
    losses = {f"capability {j}": 2.5 for j in range(CAPABILITIES)}
    for n in range(RUNS):
        place = folder / "runs" / f"{n:016x}"
        spec = {"id": place.name, "rows": [1000] * DOMAINS, "volumes": [1000] * DOMAINS, "role": "design", "seed": 0}
        place.mkdir(parents=True)
        told = {"spec": spec, "reference_loss": losses, "tokens": 1, "flops": 1.0, "train_seconds": 1.0}
        (place / "metrics.json").write_text(json.dumps(told, indent=1))
        (place / MARKER).write_text("")


def fit(_: Path) -> str:
    """Fit the law alone."""
    from ideal_proxy.response.model import ResponseModel

    rng = np.random.default_rng(0)
    available = rng.integers(500, 20_000, DOMAINS).astype(float)
    volumes = available * np.exp(rng.uniform(-1, 1, (RUNS, DOMAINS)))
    weight = np.abs(rng.normal(size=(DOMAINS, CAPABILITIES))) * (rng.random((DOMAINS, CAPABILITIES)) < 0.1) + 0.02
    losses = 0.5 + 2.5 / (1 + np.sqrt(volumes / 1000) @ weight) + 0.01 * rng.standard_normal((RUNS, CAPABILITIES))
    model = ResponseModel(available=available, base=available, process="never", harm="never", n_starts=1, n_draws=8)
    frames = (pd.DataFrame(values, columns=[f"{n}" for n in range(values.shape[1])]) for values in (volumes, losses))
    model.fit(*frames)
    assert np.isfinite(model.predict(volumes[:9])).all()
    return f"{CAPABILITIES} capabilities"


def report(folder: Path) -> str:
    """Write the page of a finished search of that size."""
    import finished_run

    from ideal_proxy.pipeline.finished import load_run
    from ideal_proxy.report import write_report

    rng = np.random.default_rng(0)
    finished_run.DOMAINS = [f"domain {d:03}" for d in range(DOMAINS)]
    finished_run.CAPABILITIES = [f"capability {j:02}" for j in range(CAPABILITIES)]
    finished_run.AVAILABLE = rng.integers(500, 20_000, DOMAINS).astype(float)
    finished_run.BASE = 0.5 * finished_run.AVAILABLE
    finished_run.PROPOSAL = np.rint(finished_run.BASE * np.exp(rng.uniform(-1, 1, DOMAINS)))
    finished_run.TOKENS = rng.uniform(10, 300, DOMAINS)
    finished_run.CONFIG |= {
        "domains": [{"name": name, "path": f"/data/{n}.jsonl"} for n, name in enumerate(finished_run.DOMAINS)],
        "capabilities": [{"name": name, "path": f"/data/r{n}"} for n, name in enumerate(finished_run.CAPABILITIES)],
    }
    weight = np.abs(rng.normal(size=(CAPABILITIES, DOMAINS))) * (rng.random((CAPABILITIES, DOMAINS)) < 0.1) + 0.02
    finished_run.true_losses = lambda volumes: 0.5 + 2.5 / (1 + np.sqrt(np.atleast_2d(volumes) / 1000.0) @ weight.T)
    run = finished_run.folder(RUNS, fitted=300)
    loaded = load_run(run)
    began = time.process_time()
    written = write_report(run, folder)
    assert len(loaded.runs) > RUNS
    spent = time.process_time() - began
    return f"page of {written.page.stat().st_size >> 10:,} KiB in {spent:.1f} CPU s; the rest made the search"


def queue(folder: Path) -> str:
    """Hand 1,000 runs to 64 workers, and lose some of them."""
    import pytest
    from builders import make_context, spec
    from test_swarm_scheduler import Simulation, simulate

    rng = np.random.default_rng(0)
    context = make_context(folder / "context")
    runs = [spec(f"run-{n:04}", (int(rng.integers(20, 200)), 40), seed=n) for n in range(1_000)]
    pool = Simulation(folder, 64, {run.id: float(rng.uniform(1, 9)) for run in runs}, beginning=0.1, imports=2.0)
    for run in runs[::10]:
        pool.lose[run.id] = 1
    with pytest.MonkeyPatch.context() as patch:
        events = simulate(context, folder, patch, runs, pool)
    finished = [event.run for _, event in events if event.kind == "finished"]
    assert sorted(finished) == [run.id for run in runs]
    return f"{len(finished)} finished once each, {len(pool.order) - len(runs)} begun again"


def measured(name: str, work: Callable[[Path], str], folder: Path) -> dict[str, Any]:
    """Time one part."""
    began, clock = time.process_time(), time.monotonic()
    told = work(folder)
    return {
        "part": name, "cpu_seconds": time.process_time() - began, "seconds": time.monotonic() - clock,
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, "told": told,
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["status", "queue", "fit", "report"])
    options = parser.parse_args()
    kept = RESULT.with_suffix(".json")
    found = {entry["part"]: entry for entry in json.loads(kept.read_text())} if kept.exists() else {}
    with tempfile.TemporaryDirectory() as place, mock.patch.dict("os.environ", {"OMP_NUM_THREADS": "1"}):
        folder = Path(place)
        if "status" in options.parts:
            write_runs(folder / "run")
            found["status"] = measured("status", status, folder / "run")
            print(json.dumps(found["status"]), flush=True)
        for name, work in (("queue", queue), ("fit", fit), ("report", report)):
            if name in options.parts:
                found[name] = measured(name, work, folder)
                print(json.dumps(found[name]), flush=True)
    lines = ["# Load", "", "`python benchmarks/faults/load.py`", "",
             f"{RUNS:,} runs, {DOMAINS} domains, {CAPABILITIES} capabilities; one core.", "",
             "| part | CPU seconds | by the clock, machine busy | peak MiB | |", "|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {e['part']} | {e['cpu_seconds']:.1f} | {e['seconds']:.1f} | {e['peak_mebibytes']} | {e['told']} |"
        for e in found.values()
    ]
    kept.write_text(json.dumps(list(found.values()), indent=1) + "\n")
    RESULT.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
