"""A scale-up as evidence: what its full-size trainings lost on search rows, kept where the next search finds it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ideal_proxy.mixture import reserve_mask
from ideal_proxy.pipeline import FULL_SIZE, EarlierRun, make_package, record_of, save_package
from ideal_proxy.proxy import RowLosses
from ideal_proxy.scaleup.refine import Arm
from ideal_proxy.scaleup.source import ScaleData
from ideal_proxy.store import is_complete, mark_complete

HELD = "config.yaml"  # of a run directory


def keep_as_evidence(
    run: Path,
    out: Path,
    data: ScaleData,
    arms: Mapping[str, Arm],
    seeds: list[int],
    model: str,
    fraction: float,
    exclude: float,
) -> Path | None:
    """Write what mixture and base lost into the run directory; verify rows stay out, and never enter a fit."""
    if not (run / HELD).is_file():
        return None
    folder = run / FULL_SIZE / out.resolve().name
    pools = [
        rows.select(np.flatnonzero(~reserve_mask(rows.split_keys, exclude))) if exclude else rows
        for rows in data.domains
    ]  # fmt: skip
    seen = [
        len(pool) if fraction == 1 else min(len(pool), max(1, round(fraction * len(rows))))
        for pool, rows in zip(pools, data.domains, strict=True)
    ]  # fmt: skip
    halves = [rows.select(np.flatnonzero(~verify)) for rows, verify in zip(data.references, data.verify, strict=True)]
    names = [f"search-{j}" for j in range(len(halves))]
    record = record_of(data.names, pools, (), seen, fraction, names, halves)

    def told(losses: Mapping[str, RowLosses]) -> list[tuple[object, object, object]]:
        found = [losses[name].select(~verify) for name, verify in zip(data.capabilities, data.verify, strict=True)]
        return [(keys, part.loss_sum, part.tokens) for keys, part in zip(record.reference_keys, found, strict=True)]

    every = [
        (f"{arm}-{seed}", seed, drawn, losses)
        for arm, found in arms.items()
        for seed, drawn, losses in zip(seeds, found.drawn, found.runs, strict=True)
    ]
    runs = [
        EarlierRun(
            id=name, rows=tuple(int(n) for n in drawn.volumes), seed=seed, weights="",
            tokens=int(sum(losses.log["tokens"].values())), seconds=float(losses.log["seconds"]),
        )
        for name, seed, drawn, losses in every
    ]  # fmt: skip
    package = make_package(
        str(out), record, runs, [told(losses.after) for *_, losses in every], told(every[0][3].before),
        {"full": model.rstrip("/").rsplit("/", 1)[-1]},
    )  # fmt: skip
    if is_complete(folder):
        shutil.rmtree(folder)
    save_package(folder, package)
    mark_complete(folder)
    return folder
