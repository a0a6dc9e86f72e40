"""All runs of a search as one table: role, seed, rate, volumes, losses, cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ideal_proxy.pipeline.context import reference
from ideal_proxy.pipeline.earlier_runs import REUSED
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.reuse import ReusedRuns
from ideal_proxy.swarm import IMITATED, JUDGED, Run


def run_table(
    prepared: Prepared, results: Mapping[str, Run], roles: Mapping[str, str], reused: ReusedRuns | None, rate: float,
    *, with_metrics: bool,
) -> pd.DataFrame:  # fmt: skip
    """Write a row for every run; runs of earlier searches come first."""
    lines = [] if reused is None else _reused_lines(prepared, reused, rate)
    for run, result in results.items():
        if roles[run] == JUDGED:  # what it told stands beside the earlier run
            continue
        line: dict[str, Any] = {
            "run": run, "role": roles[run], "seed": result.spec.seed, "learning_rate": result.spec.learning_rate,
        }  # fmt: skip
        for name, volume in zip(prepared.domains.names, result.spec.volumes, strict=True):
            line[f"rows/{name}"] = volume
        for j, name in enumerate(prepared.capability_names):
            for half in ("search", "verify"):
                if (losses := result.losses.get(reference(j, half))) is not None:
                    line[f"{half}_loss/{name}"] = losses.mean
                if (score := result.scores.get(reference(j, half))) is not None:
                    line[f"{half}_score/{name}"] = score
        line |= {key: result.metrics[key] for key in ("rows", "tokens", "supervised_tokens", "steps", "flops")}
        line["seconds"] = result.seconds
        if with_metrics:
            line["metric_seconds"] = result.metrics.get("metric_seconds", 0.0)
        lines.append(line)
    return pd.DataFrame(lines)


def roles_when_trained(frame: pd.DataFrame) -> pd.Series[str]:
    """Give each run's role when it was trained: a sweep's runs at the chosen rate became the swarm's own later."""
    mixture = ["seed", *(column for column in frame if str(column).startswith("rows/"))]
    swept = {*frame.loc[frame["role"] == "sweep", mixture].itertuples(index=False, name=None)}
    shared = np.array([line in swept for line in frame[mixture].itertuples(index=False, name=None)], dtype=bool)
    return frame["role"].mask((frame["role"] == "design") & shared, "sweep")


def table_cost(frame: pd.DataFrame, *, with_gradients: bool) -> dict[str, Any]:
    """Add up what a search trained."""
    frame = frame[frame["role"] != REUSED]
    estimates, imitated = frame["role"] == "gradients", frame["role"] == IMITATED
    cost: dict[str, Any] = {
        "runs": int((~estimates & ~imitated).sum()), "tokens": int(frame["tokens"].sum()),
        "seconds": float(frame["seconds"].sum()),
    }  # fmt: skip
    if imitated.any():
        cost |= {"imitations": int(imitated.sum()), "imitation_seconds": float(frame.loc[imitated, "seconds"].sum())}
    if with_gradients:
        share = frame.loc[estimates, "tokens"].sum() / frame.loc[frame["role"] == "design", "tokens"].mean()
        cost |= {"gradient_passes": int(estimates.sum()), "gradient_runs": float(share)}
    return cost


def _reused_lines(prepared: Prepared, reused: ReusedRuns, rate: float) -> list[dict[str, Any]]:
    """Give the table's rows of earlier runs; they cost this search nothing."""
    lines = []
    for r, run in enumerate(reused.ids):
        line: dict[str, Any] = {
            "run": run, "role": REUSED, "seed": int(reused.seeds[r]), "from": reused.origin[r], "learning_rate": rate,
        }  # fmt: skip
        line |= {f"rows/{n}": v for n, v in zip(prepared.domains.names, reused.volumes[r], strict=True)}
        line |= {f"search_loss/{n}": x for n, x in zip(prepared.capability_names, reused.losses[r], strict=True)}
        line |= dict.fromkeys(("rows", "tokens", "supervised_tokens", "steps"), 0) | {"seconds": 0.0}
        lines.append(line)
    return lines
