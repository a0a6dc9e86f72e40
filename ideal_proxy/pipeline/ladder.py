"""A ladder: proxies of rising sizes in one fit, whose last size is predicted and checked.

The lower sizes are trained first, each in a folder of its own, and enter the fit as evidence of another kind: what they
show of the last size is learned from its own runs, and stands in the intervals until then.
"""

from __future__ import annotations

import numpy as np

from ideal_proxy.pipeline.laboratory import Laboratory
from ideal_proxy.pipeline.plan_cost import proxies_of, scaled_rate, settings_of, sweeps_every_size
from ideal_proxy.pipeline.rate import choose_rate
from ideal_proxy.pipeline.reuse import ReusedRuns
from ideal_proxy.pipeline.row_record import Heritage
from ideal_proxy.pipeline.stage import LOWER
from ideal_proxy.response import SMALLER_SIZE
from ideal_proxy.sections import size_name
from ideal_proxy.store import atomic_write_json


def climb(last: Laboratory, heritage: Heritage | None) -> None:
    """Train the sizes below the last, and give them and their learning rate to its laboratory."""
    config, prepared, plan = last.config, last.prepared, last.plan
    sizes, rate = config.swarm.sizes, None
    for lower in plan.lower:
        settings, own, name = settings_of(config, lower.size), plan.of_lower(lower), size_name(lower.size)
        folder = last.folder / LOWER / name
        with Laboratory(
            settings, prepared.of_size(lower.size), own, folder, last.reporter, last.record, last.tracker, name,
            heritage=heritage,
        ) as laboratory:  # fmt: skip
            laboratory.warm_start()
            path = folder / "rate.json"
            if rate is not None and not path.exists():
                atomic_write_json(path, {"learning_rate": rate, "chosen": "scaled from the size below"}, seal=True)
            rate = choose_rate(laboratory, path)
            laboratory.explore(prepared.domains.base, config.swarm.spread, lower.runs, rate, 0)
            last.learn_from(_as_evidence(laboratory, lower.size), laboratory.cost())
        rate = scaled_rate(rate, lower.size, sizes[sizes.index(lower.size) + 1])
        if sweeps_every_size(config):
            rate = None
    path = last.folder / "rate.json"
    if rate is not None and not path.exists():
        chosen = f"scaled from what {proxies_of(sizes[0])} chose"
        atomic_write_json(path, {"learning_rate": rate, "chosen": chosen}, seal=True)


def _as_evidence(laboratory: Laboratory, size: str) -> ReusedRuns:
    """Give a size's runs as evidence of another kind."""
    found, name, short = laboratory.evidence(), proxies_of(size), size_name(size)
    runs = laboratory.frame().set_index("run").loc[list(found.ids)]
    nothing = np.zeros((len(found.ids), 0))
    return ReusedRuns(
        ids=tuple(f"{short}:{run}" for run in found.ids), origin=(name,) * len(found.ids), volumes=found.volumes,
        retired=(), retired_volumes=nothing, retired_available=np.zeros(0), losses=found.losses, seeds=found.seeds,
        labels=tuple(f"{short}:{v.tolist()}" for v in found.volumes), weights=("",) * len(found.ids),
        tokens=runs["tokens"].to_numpy(dtype=np.int64), seconds=runs["seconds"].to_numpy(dtype=float),
        kind_of=(name,) * len(found.ids), sizes={name: found.losses_before}, kinds={name: SMALLER_SIZE},
    )  # fmt: skip
