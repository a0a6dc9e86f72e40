"""What a search will cost, before it starts: the proxy fraction, runs, steps, tokens, time on this machine.

Everything chosen by timing is chosen here, once, and written to the run directory; a resumed search reads it.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.anchors import default_runs, make_anchors
from ideal_proxy.pipeline.machine import (
    default_workers,
    free_bytes,
    gpus,
    measure,
    planned_device,
    probe_command,
    probe_metrics,
)
from ideal_proxy.pipeline.plan_cost import (
    FILL,
    MOST_EXTENSIONS,
    SWEEP_MIXTURES,
    LowerSize,
    Plan,
    describe_plan,
    memory_of_worker,
    run_seconds,
    settings_of,
    sweep_rates,
    sweeps_every_size,
)
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.sequential import planned_looks
from ideal_proxy.proxy import Elsewhere, Products, budget_hours, cost_of
from ideal_proxy.store import atomic_write_json, read_json
from ideal_proxy.terminal import money

PROXY_ROWS = 4000  # rows of the base mixture that a proxy draws by default
LEAST_PROXY_ROWS = 400
FEW_GAIN = 0.2  # of the time that fewer reference rows must save to be named
FEW_JUDGED = 64  # reference rows a capability of the search, where reading them all takes too long
MOST_LOWER_RUNS = 6  # times n + 1: more of a size below the last tell of itself alone
LOWER_SHARE = 0.5  # of what 3(n + 1) runs of the last size cost: what the sizes below it may cost together


class Wanted(NamedTuple):
    """New runs, earlier ones to judge, and the runs of a search without reuse."""

    runs: int
    judged: int
    fresh: int
    warms: bool = False


def make_plan(
    config: SearchConfig,
    prepared: Prepared,
    path: Path,
    elsewhere: Elsewhere | None = None,
    wanted: Wanted | None = None,
) -> Plan:
    """Choose the sizes of a search, or read those chosen before."""
    if path.exists() and elsewhere is None:
        plan = read_plan(path)
        looks = planned_looks(config.verify.pairs, config.verify.max_pairs)
        return replace(plan, workers=config.swarm.workers or plan.workers, rounds=config.rounds, looks=looks)
    check_gradients(config)
    if config.gradients == "unrolled" and config.proxy.dtype == "bfloat16":
        raise UsageError("gradients: unrolled is exact only in float32; set proxy.dtype to float32, or choose implicit")
    device = planned_device(config)
    workers = config.swarm.workers or default_workers(config, device)
    on_ray = round(workers * config.swarm.gpus)
    devices = config.cost.devices or on_ray or (min(workers, gpus()) if device == "cuda" else 1)
    found = measure(config, prepared, device)
    if elsewhere is not None:
        workers = devices = elsewhere.devices
        found = found.at(elsewhere.flops_per_second)
    size = len(prepared.facts)
    on_target = config.proxy.mode == "target" and wanted is None
    usual = default_runs(config, prepared) if on_target else 3 * (size + 1)
    runs = wanted.runs if wanted else config.swarm.runs or usual
    anchors = make_anchors(config, prepared, runs, range(config.swarm.seeds)) if on_target else None
    rates = (config.proxy.learning_rate,) if config.proxy.learning_rate else sweep_rates(config)
    if config.swarm.sizes:  # the lowest size sweeps, and the others have what is made of its rate
        rates = rates if sweeps_every_size(config) else (rates[len(rates) // 2],)
        runs = wanted.runs if wanted else config.swarm.runs or size + 1
    plan = Plan(
        fraction=_default_fraction(config, prepared),
        rates=rates, runs=runs, more_runs=-(-(size + 1) // 4) if wanted else size + 1, rounds=config.rounds,
        looks=planned_looks(config.verify.pairs, config.verify.max_pairs),
        workers=workers, dtype=found.dtype, device=device, tokens_per_second=found.tokens_per_second,
        parameters=found.parameters, products=found.products, flops_per_second=found.flops_per_second, devices=devices,
        metric_seconds=(probe_metrics(config, prepared, device) if config.has_metrics else 0.0)
        + (probe_command(config, prepared, device) if config.proxy.command else 0.0),
        trainable_parameters=found.trainable_parameters, judged=wanted.judged if wanted else 0,
        fresh_runs=wanted.fresh if wanted else 0,
        warms=wanted.warms if wanted else False, imitations=anchors.imitations if anchors else 0,
    )  # fmt: skip
    if config.proxy.model is not None and config.swarm.workers is None and config.swarm.engine == "local":
        each = memory_of_worker(config, prepared, plan)
        plan = replace(plan, workers=workers_that_fit(workers, each, free_bytes("cpu") or 0.0))
    if config.swarm.sizes:
        plan = replace(plan, lower=_lower_sizes(config, prepared, plan, elsewhere))
    plan = _within_budget(config, prepared, plan)
    if anchors is not None:
        _refuse_full_disk(plan, path.parent)
    if config.swarm.engine == "local" and elsewhere is None and (free := free_bytes(device)) is not None:
        held = plan.workers * (memory_of_worker(config, prepared, plan) or 0.0)
        plan = replace(plan, memory=FILL * free - held)
    if elsewhere is None:
        atomic_write_json(path, asdict(plan))
        atomic_write_json(_copy(path), asdict(plan), seal=True)
    return plan


def _copy(path: Path) -> Path:
    """Where a plan lies a second time: it holds what was measured, which a second measurement would not give."""
    return path.parent / "prepared" / path.name


def _refuse_full_disk(plan: Plan, folder: Path) -> None:
    """Refuse a search whose anchors keep more weights than the disk has room for."""
    kept, free = plan.runs, shutil.disk_usage(folder).free
    if len(plan.rates) > 1:  # anchors at other rates, which may be extended
        kept += SWEEP_MIXTURES * (len(plan.rates) - 1 + MOST_EXTENSIONS)
    needed = 4.0 * (plan.trainable_parameters or plan.parameters) * kept
    if needed > FILL * free:
        raise UsageError(
            f"proxy.mode: target keeps the weights of up to {kept} runs, {needed / 1e9:.3g} GB, and {folder} has "
            f"{free / 1e9:.3g} GB free; set proxy.lora_rank, or choose another --out"
        )


def read_plan(path: Path) -> Plan:
    """Read a plan that was made before; from its sealed copy where the file is damaged."""
    found = {}
    for place in (path, _copy(path)):
        with contextlib.suppress(UserError):
            found[place] = read_json(place)
    if not found:
        found[path] = read_json(path)  # says what is wrong
    if path not in found:
        atomic_write_json(path, found[_copy(path)])
    try:
        return [_plan(raw) for raw in found.values()][-1]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} was written by another version of ideal-proxy ({error}); choose another --out, or finish the "
            "search with that version"
        ) from error


def _plan(raw: dict[str, Any]) -> Plan:
    lower = (
        LowerSize(**(entry | {"rates": tuple(entry["rates"]), "products": Products(**entry["products"])}))
        for entry in raw.get("lower", ())
    )
    return Plan(**(raw | {
        "rates": tuple(raw["rates"]), "looks": tuple(raw["looks"]), "products": Products(**raw["products"]),
        "lower": tuple(lower),
    }))  # fmt: skip


def _lower_sizes(
    config: SearchConfig, prepared: Prepared, plan: Plan, elsewhere: Elsewhere | None
) -> tuple[LowerSize, ...]:
    """Measure the sizes below the last, and share out runs: as many as half of a search at the last size alone buys."""
    found = []
    for place, size in enumerate(config.swarm.sizes[:-1]):
        settings = settings_of(config, size)
        seen = measure(settings, prepared.of_size(size), plan.device)
        if elsewhere is not None:
            seen = seen.at(elsewhere.flops_per_second)
        rates = sweep_rates(settings)
        rate = settings.proxy.learning_rate
        swept = not place or sweeps_every_size(config)
        found.append(LowerSize(
            size=size, runs=0, rates=(rate,) if rate else rates if swept else (rates[len(rates) // 2],),
            dtype=seen.dtype, tokens_per_second=seen.tokens_per_second, parameters=seen.parameters,
            products=seen.products, flops_per_second=seen.flops_per_second,
            trainable_parameters=seen.trainable_parameters,
        ))  # fmt: skip
    few = len(prepared.facts) + 1
    last = run_seconds(prepared, plan.fraction, plan)
    runs = config.swarm.lower_runs or [
        int(np.clip(LOWER_SHARE * 3 * few * last / len(found) / run_seconds(prepared, plan.fraction, of), 2 * few,
                    MOST_LOWER_RUNS * few))
        for of in found
    ]  # fmt: skip
    return tuple(replace(of, runs=int(count)) for of, count in zip(found, runs, strict=True))


def check_gradients(config: SearchConfig) -> None:
    """Refuse to differentiate whole trainings of a pretrained model, before anything is loaded."""
    if config.proxy.model is not None and config.gradients == "unrolled":
        raise UsageError(
            "gradients: unrolled needs scratch proxies; choose implicit, which differentiates the trained model"
        )


def workers_that_fit(workers: int, each: float | None, free: float) -> int:
    """Take no more workers than memory holds."""
    return workers if each is None else max(1, min(workers, int(FILL * free / each)))


def largest_fraction(prepared: Prepared) -> float:
    """Return the largest φ for which φ·U_i rows are left beside the warm start's, in every domain."""
    return float(min(1 - domain.reserved / domain.available for domain in prepared.facts))


def _default_fraction(config: SearchConfig, prepared: Prepared) -> float:
    """Draw about PROXY_ROWS rows of the base, or what the run file says."""
    if config.reuse and config.proxy.fraction:  # that of the earlier runs, whose volumes it gives their meaning
        return config.proxy.fraction
    largest = largest_fraction(prepared)
    wanted = config.proxy.fraction or PROXY_ROWS / float(prepared.domains.base.sum())
    return round(min(wanted, largest), 6) if wanted < largest else np.floor(largest * 1e6) / 1e6


def _within_budget(config: SearchConfig, prepared: Prepared, plan: Plan) -> Plan:
    """Shrink or stretch φ so that all planned work fits the budget in hours or money, with a tenth to spare."""
    budget = budget_hours(config.cost, config.swarm.max_hours, plan.devices)
    if budget is None:
        return plan
    allowed, limit = budget[0] * 3600 * 0.9, budget[1]
    if config.proxy.fraction is not None:  # nothing to shrink; one round with the fewest pairs must do
        needed = describe_plan(config, prepared, plan)["least_seconds"]
        if needed > allowed / 0.9:
            saved = needed - describe_plan(config, _reading_few(prepared), plan)["least_seconds"]
            raise UsageError(
                f"{limit} is too little: one round of {plan.runs} proxies at proxy.fraction {plan.fraction:g} needs "
                f"about {_budget_text(config, needed, plan)} here; raise it, or lower --runs or proxy.fraction"
                + _reading_hint(saved / needed)
            )
        return plan
    full = describe_plan(config, prepared, replace(plan, fraction=1.0))["total"]["seconds"]
    none = describe_plan(config, prepared, replace(plan, fraction=1e-9))["total"]["seconds"]
    fraction = (allowed - none) / (full - none)
    least = LEAST_PROXY_ROWS / float(prepared.domains.base.sum())
    if fraction < least:
        needed = (none + least * (full - none)) / 0.9
        fewer = describe_plan(config, _reading_few(prepared), replace(plan, fraction=1e-9))["total"]["seconds"]
        saved = (none - fewer) / 0.9
        raise UsageError(
            f"{limit} is too little: {plan.runs} proxies of {LEAST_PROXY_ROWS} rows and their check need about "
            f"{_budget_text(config, needed, plan)} here; raise it, or lower --runs, --rounds or the proxy's size"
            + _reading_hint(saved / needed)
        )
    return replace(plan, fraction=float(np.floor(min(fraction, largest_fraction(prepared)) * 1e6) / 1e6))


def _reading_few(prepared: Prepared) -> Prepared:
    """Let every proxy read few reference rows."""
    few = (replace(of, search_rows=min(of.search_rows, FEW_JUDGED)) for of in prepared.capabilities)
    return replace(prepared, capabilities=tuple(few))


def _reading_hint(share: float) -> str:
    return f"; {share:.0%} of it go with swarm.judge_rows: {FEW_JUDGED}" if share > FEW_GAIN else ""


def _budget_text(config: SearchConfig, seconds: float, plan: Plan) -> str:
    """Write a time, and what it costs where a price is known."""
    cost = cost_of(config.cost, seconds, plan.devices)
    price = "" if cost is None else f" ({money(cost, config.cost.currency)})"
    return f"{seconds / 3600:.2g} h{price}"
