"""A run file changed by the options of a command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ideal_proxy.config import SearchConfig, model_place, parse_config
from ideal_proxy.errors import UsageError, shortened
from ideal_proxy.proxy import budget_hours
from ideal_proxy.sections import SCRATCH_DEFAULTS, on_dial
from ideal_proxy.store import run_folder


def override(
    config: SearchConfig,
    *,
    rounds: int | None = None,
    runs: int | None = None,
    max_hours: float | None = None,
    seed: int | None = None,
    workers: int | None = None,
    engine: str | None = None,
    gradients: str | None = None,
    price: float | None = None,
    max_cost: float | None = None,
    sizes: str | None = None,
    multiples: int | None = None,
    reuse: Sequence[str | Path] = (),
) -> SearchConfig:
    """Apply command-line options to a run file."""
    for option, amount in (("--price", price), ("--max-cost", max_cost), ("--max-hours", max_hours)):
        if amount is not None and not 0 < amount < math.inf:
            raise UsageError(f"{option} is {amount:g}; give an amount above 0, or leave it out")
    if engine not in {None, "local", "ray", "slurm"}:
        raise UsageError(f"--engine is {engine!r}; choose local, ray or slurm")
    if gradients not in {None, "auto", "implicit", "unrolled", "none"}:
        raise UsageError(f"--gradients is {gradients!r}; choose auto, implicit, unrolled or none")
    if gradients in {"implicit", "unrolled"} and config.has_metrics:
        raise UsageError(
            f"--gradients {gradients}: gradients are derivatives of losses, and a capability of this search is judged "
            "by a metric; leave it out"
        )
    if sizes is not None:
        config = _with_sizes(config, [name for size in sizes.split(",") if (name := size.strip())])
    given = (("rounds", rounds), ("seed", seed), ("gradients", gradients))
    top: dict[str, Any] = {key: value for key, value in given if value is not None}
    if reuse:
        top["reuse"] = tuple(str(run_folder(Path(run)).resolve()) for run in reuse)
    swarm = {
        key: value
        for key, value in (("runs", runs), ("max_hours", max_hours), ("workers", workers), ("engine", engine))
        if value is not None
    }
    money = {key: value for key, value in (("price", price), ("max", max_cost)) if value is not None}
    sections: dict[str, Any] = {
        "swarm": config.swarm.model_copy(update=swarm),
        "cost": config.cost.model_copy(update=money),
    }
    if multiples is not None:
        sections["constraints"] = config.constraints.model_copy(update={"round": multiples})
    config = config.model_copy(update=top | sections)
    budget_hours(config.cost, config.swarm.max_hours, 1)
    return config


def _with_sizes(config: SearchConfig, sizes: Sequence[str]) -> SearchConfig:
    """Make a search a ladder; folders of models are taken from the current one, as paths of a command are."""
    if not sizes:
        raise UsageError("--sizes names none; give two or more, such as 0.1M,1M, or leave it out")
    try:
        sizes = [size if on_dial(size) else str(model_place(size, Path.cwd())) for size in sizes]
    except (OSError, ValueError, RuntimeError) as error:  # a name of 300 letters, a null byte, ~nobody
        raise UsageError(f"--sizes: a path cannot be read ({shortened(str(error), 200)}); correct it") from error
    raw = config.model_dump(mode="json")
    raw["swarm"] |= {"sizes": list(sizes), "lower_runs": []}
    if raw["proxy"]["model"] is None:
        scratch = on_dial(sizes[-1])
        raw["proxy"] |= {"size": sizes[-1]} if scratch else dict.fromkeys(SCRATCH_DEFAULTS) | {"model": sizes[-1]}
    return parse_config(raw, where="--sizes")
