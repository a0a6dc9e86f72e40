"""What a search will cost, before it starts: the proxy fraction, runs, steps, tokens, time on this machine.

Everything chosen by timing is chosen here, once, and written to the run directory; a resumed search reads it.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UsageError
from ideal_proxy.fit_choice import LEAST_RUNS
from ideal_proxy.prepare import Prepared
from ideal_proxy.store import atomic_write_json, read_json
from ideal_proxy.swarm import response_trainings
from ideal_proxy.verdict import planned_looks

PROXY_ROWS = 4000  # rows of the base mixture that a proxy draws by default
LEAST_PROXY_ROWS = 400
RATES = {
    "0.1M": (3e-3, 6e-3, 1.2e-2),
    "1M": (1e-3, 2e-3, 4e-3),
    "3M": (7e-4, 1.4e-3, 2.8e-3),
    "10M": (4e-4, 8e-4, 1.6e-3),
}
SWEEP_MIXTURES = 3
FULL_EVALUATION = 1 / 3  # cost of a token's forward pass against forward and backward


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sizes of a search.

    Attributes:
        fraction: φ, the share of the full-size volumes that a proxy sees.
        rates: learning rates of the sweep, rising; one entry where it is given.
        runs: proxies of the first round.
        more_runs: proxies of a later round.
        rounds: most rounds.
        looks: numbers of pairs after which the verdict is looked at.
        workers: processes side by side.
        dtype: precision of the products.
        device: where proxies train.
        tokens_per_second: of one worker in training, measured here.
        parameters: of a proxy.
    """

    fraction: float
    rates: tuple[float, ...]
    runs: int
    more_runs: int
    rounds: int
    looks: tuple[int, ...]
    workers: int
    dtype: str
    device: str
    tokens_per_second: float
    parameters: int


def make_plan(config: SearchConfig, prepared: Prepared, path: Path) -> Plan:
    """Choose the sizes of a search, or read those chosen before.

    Args:
        config: the run file.
        prepared: the problem in numbers.
        path: `plan.json` of the run directory.

    Returns:
        Plan: also written to the file.

    Raises:
        UsageError: the compute budget is below the least that can give an answer, or gradients are unrolled in
            bfloat16.
    """
    if path.exists():
        raw: dict[str, Any] = read_json(path)
        return Plan(**(raw | {"rates": tuple(raw["rates"]), "looks": tuple(raw["looks"])}))
    if config.gradients == "unrolled" and config.proxy.dtype == "bfloat16":
        raise UsageError("gradients: unrolled is exact only in float32; set proxy.dtype to float32, or choose implicit")
    device = config.proxy.device if config.proxy.device != "auto" else _device()
    workers = config.swarm.workers or (_cores() if device == "cpu" else 1)
    speed, dtype, parameters = _measure(config, prepared, device)
    size = len(prepared.domains)
    runs = config.swarm.runs or 3 * (size + 1)
    rates = (config.proxy.learning_rate,) if config.proxy.learning_rate else RATES[config.proxy.size]
    plan = Plan(
        fraction=_default_fraction(config, prepared),
        rates=rates, runs=runs, more_runs=size + 1, rounds=config.rounds,
        looks=planned_looks(config.verify.pairs, config.verify.max_pairs),
        workers=workers, dtype=dtype, device=device, tokens_per_second=speed, parameters=parameters,
    )  # fmt: skip
    if config.swarm.max_hours is not None and config.proxy.fraction is None:
        plan = _within_budget(config, prepared, plan)
    atomic_write_json(path, asdict(plan))
    return plan


def gradient_method(config: SearchConfig, runs: int) -> tuple[str, str]:
    """Say which responses a search estimates from its trained proxies.

    Args:
        config: the run file.
        runs: proxies of the first round.

    Returns:
        tuple: "implicit", "unrolled" or "" for none, and the reason in words where the choice was `auto`.
    """
    if config.gradients != "auto":
        return ("" if config.gradients == "none" else config.gradients), ""
    few = len(config.domains) + 1
    if LEAST_RUNS <= runs <= few:
        return "implicit", f"auto: {runs} runs are no more than n + 1 = {few} for n domains"
    if runs > few:
        return "", f"auto: {runs} runs are more than n + 1 = {few} for n domains, where losses alone serve as well"
    return "", f"auto: fewer than {LEAST_RUNS} runs cannot check what gradients say"


def describe_plan(config: SearchConfig, prepared: Prepared, plan: Plan) -> dict[str, Any]:
    """Work out runs, steps, tokens and time of every stage.

    Args:
        config: the run file.
        prepared: the problem in numbers.
        plan: the sizes.

    Returns:
        dict: JSON-ready; `stages`, `total` and the plan's own numbers. Times are upper bounds: every round, every pair.
    """
    rows = float(prepared.column("base").sum()) * plan.fraction
    tokens = float(prepared.column("base") @ prepared.column("tokens_per_row")) * plan.fraction
    steps = int(np.ceil(rows / config.proxy.batch_rows))
    reserved = sum(d.reserved * d.tokens_per_row for d in prepared.domains)
    reference = sum(c.rows for c in prepared.capabilities) * float(prepared.column("tokens_per_row").mean())
    each = tokens + reference / 2 * FULL_EVALUATION
    sweep = (len(plan.rates) - 1) * SWEEP_MIXTURES  # those at the chosen rate belong to the swarm
    pairs = 2 * plan.looks[-1]
    method = gradient_method(config, plan.runs)[0]
    passes = config.swarm.seeds if method else 0
    trainings = response_trainings(method, len(config.capabilities))
    stages = [
        ("warm start", 1, reserved, reserved, reserved / max(tokens, 1) * steps),
        ("learning rate", sweep, tokens * sweep, each * sweep, sweep * steps),
        ("swarm", plan.runs, tokens * plan.runs, each * plan.runs, plan.runs * steps),
        *([("gradients", passes, tokens * trainings * passes, tokens * trainings * passes, 0)] if passes else []),
        ("check", pairs, tokens * pairs, (each + reference / 2 * FULL_EVALUATION) * pairs, pairs * steps),
    ]
    if plan.rounds > 1:
        more = plan.more_runs * (plan.rounds - 1)
        again = pairs * (plan.rounds - 1)
        runs = more + again
        again_passes = tokens * trainings * passes * (plan.rounds - 1)
        stages.append(("more rounds", runs, tokens * runs + again_passes, each * runs + again_passes, runs * steps))
    described: list[dict[str, Any]] = []
    for name, runs, trained, work, stage_steps in stages:
        workers = 1 if name == "warm start" else plan.workers
        described.append({
            "name": name, "runs": runs, "steps": round(stage_steps), "tokens": round(trained),
            "seconds": work / plan.tokens_per_second / workers,
        })  # fmt: skip
    if plan.rounds > 1:
        described[-1]["rounds"] = plan.rounds - 1
    total_tokens = int(sum(stage["tokens"] for stage in described))
    first = [stage["name"] for stage in described].index("check")
    least = sum(s["seconds"] for s in described[:first]) + described[first]["seconds"] * plan.looks[0] / plan.looks[-1]
    return {
        **asdict(plan),
        "pairs": plan.looks[0],
        "steps_per_run": steps,
        "stages": described,
        "total": {
            "runs": sum(stage["runs"] for stage in described),
            "tokens": total_tokens,
            "flops": 6.0 * plan.parameters * total_tokens,
            "seconds": sum(stage["seconds"] for stage in described),
        },
        "least_seconds": least,
    }


def largest_fraction(prepared: Prepared) -> float:
    """Return the largest φ for which φ·U_i rows are left beside the warm start's, in every domain.

    Args:
        prepared: the problem in numbers.

    Returns:
        float: share of the full-size volumes.
    """
    return float(min(1 - domain.reserved / domain.available for domain in prepared.domains))


def _default_fraction(config: SearchConfig, prepared: Prepared) -> float:
    """Draw about PROXY_ROWS rows of the base, or what the run file says."""
    largest = largest_fraction(prepared)
    wanted = config.proxy.fraction or PROXY_ROWS / float(prepared.column("base").sum())
    return round(min(wanted, largest), 6) if wanted < largest else np.floor(largest * 1e6) / 1e6


def _within_budget(config: SearchConfig, prepared: Prepared, plan: Plan) -> Plan:
    """Shrink or stretch φ so that all planned work fits the compute budget, with a tenth to spare."""
    from dataclasses import replace

    assert config.swarm.max_hours is not None
    allowed = config.swarm.max_hours * 3600 * 0.9
    full = describe_plan(config, prepared, replace(plan, fraction=1.0))["total"]["seconds"]
    none = describe_plan(config, prepared, replace(plan, fraction=1e-9))["total"]["seconds"]
    fraction = (allowed - none) / (full - none)
    least = LEAST_PROXY_ROWS / float(prepared.column("base").sum())
    if fraction < least:
        hours = (none + least * (full - none)) / 3600 / 0.9
        raise UsageError(
            f"--max-hours {config.swarm.max_hours:g} is too little: {plan.runs} proxies of {LEAST_PROXY_ROWS} rows and "
            f"their check need about {hours:.2g} h here; raise it, or lower --runs, --rounds or the proxy's size"
        )
    return replace(plan, fraction=float(np.floor(min(fraction, largest_fraction(prepared)) * 1e6) / 1e6))


def _measure(config: SearchConfig, prepared: Prepared, device: str) -> tuple[float, str, int]:
    """Train a throw-away proxy for a moment; return tokens a second, the faster precision, parameters."""
    import torch

    from ideal_proxy.proxy import TrainSettings, build_proxy, train

    parts = [prepared.domain_rows(index) for index in range(len(prepared.domains))]
    batch = config.proxy.batch_rows
    rng = np.random.default_rng(0)
    domain = rng.integers(0, len(parts), 6 * batch)
    row = np.array([rng.integers(0, len(parts[d])) for d in domain])
    tokens = int(sum(parts[d].lengths[r] for d, r in zip(domain[2 * batch :], row[2 * batch :], strict=True)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speeds = {}
        choices = [config.proxy.dtype] if config.proxy.dtype != "auto" else ["float32"]
        exact = config.gradients == "unrolled"  # differentiating through a training in bfloat16 would not be
        if config.proxy.dtype == "auto" and not exact and (device != "cpu" or config.proxy.size != "0.1M"):
            choices.append("bfloat16")
        for dtype in choices:
            model = build_proxy(config.proxy.size, prepared.vocabulary, config.proxy.context, 0).to(device)
            settings = TrainSettings(learning_rate=1e-4, batch_rows=batch, dtype=dtype)
            train(model, (domain[: 2 * batch], row[: 2 * batch]), parts, settings)
            started = time.perf_counter()
            train(model, (domain[2 * batch :], row[2 * batch :]), parts, settings)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            speeds[dtype] = tokens / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    # Half as fast again before precision is given up: a choice by timing must not flip with the machine's mood.
    chosen = "bfloat16" if speeds.get("bfloat16", 0) > 1.5 * speeds.get("float32", np.inf) else choices[0]
    return speeds[chosen], chosen, sum(p.numel() for p in model.parameters())


def _device() -> str:
    """Return the best device here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
