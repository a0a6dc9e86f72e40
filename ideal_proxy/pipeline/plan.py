"""What a search will cost, before it starts: the proxy fraction, runs, steps, tokens, time on this machine.

Everything chosen by timing is chosen here, once, and written to the run directory; a resumed search reads it.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict, dataclass, replace
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
    micro_batch_tokens,
    planned_device,
    probe_command,
    probe_metrics,
)
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.sequential import planned_looks
from ideal_proxy.pipeline.stage import Stage, trained_runs
from ideal_proxy.pipeline.weights import domain_shares, steps_taken
from ideal_proxy.proxy import RATES, Elsewhere, Products, budget_hours, cost_of, gradient_bytes, worker_bytes
from ideal_proxy.store import atomic_write_json, read_json
from ideal_proxy.swarm import response_trainings
from ideal_proxy.terminal import money

PROXY_ROWS = 4000  # rows of the base mixture that a proxy draws by default
LEAST_PROXY_ROWS = 400
CPU_MICRO_BATCH = 2048  # tokens; as proxy.model.MICRO_BATCH_TOKENS, which needs torch
# Of pretrained proxies: a proxy sees some hundred to thousand rows, few steps, so the rates reach above those of a
# full-size run. The sweep goes on by factors of two where the best lies at an edge.
FULL_RATES, LORA_RATES = (2.5e-5, 1e-4, 4e-4), (1e-4, 4e-4, 1.6e-3)
FILL = 0.8  # of the free memory is used
SWEEP_MIXTURES, MOST_EXTENSIONS = 3, 3  # of the sweep of rates, which goes on by a factor of 2 each
MOST_LOWER_RUNS = 6  # times n + 1: more of a size below the last tell of itself alone
LOWER_SHARE = 0.5  # of what 3(n + 1) runs of the last size cost: what the sizes below it may cost together


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSize:
    """One of a ladder's sizes below the last.

    Attributes:
        size: of the dial.
        runs: proxies.
        rates: learning rates of the sweep; one entry where it is scaled from another size's.
        dtype: precision of the products.
        tokens_per_second: of one worker in training, measured here.
        parameters: of a proxy.
        products: multiply-adds of its matrix products.
        flops_per_second: of one worker.
    """

    size: str
    runs: int
    rates: tuple[float, ...]
    dtype: str
    tokens_per_second: float
    parameters: int
    products: Products
    flops_per_second: float


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
        products: multiply-adds of a proxy's matrix products.
        flops_per_second: of one worker in training, by the same measurement, or given for another machine.
        devices: GPUs that the workers share, or one machine: what is paid for while the search runs.
        metric_seconds: what the metrics of a run take, measured here on an untrained proxy, and what a trainer of the
            user's own takes for a few rows; 0 where there are none.
        trainable_parameters: of the parameters those that training changes; None is all.
        memory: bytes that gradients may take beside the workers; None where that is not known.
        judged: earlier runs whose stored weights are judged; 0 without reuse.
        fresh_runs: proxies of the first round that a search without reuse would have; 0 without reuse.
        imitations: mixtures that mean weights stand for; 0 but with mode: target.
        warms: whether a search with reuse makes a warm start of its own.
        lower: a ladder's sizes below the last, which all else here is about; () without a ladder.
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
    products: Products
    flops_per_second: float
    devices: int = 1
    metric_seconds: float = 0.0
    trainable_parameters: int | None = None
    memory: float | None = None
    judged: int = 0
    fresh_runs: int = 0
    imitations: int = 0
    lower: tuple[LowerSize, ...] = ()
    warms: bool = False

    def of_lower(self, lower: LowerSize) -> Plan:
        """Give the plan of one of the sizes below."""
        return replace(
            self, rates=lower.rates, runs=lower.runs, dtype=lower.dtype, tokens_per_second=lower.tokens_per_second,
            parameters=lower.parameters, products=lower.products, flops_per_second=lower.flops_per_second,
            trainable_parameters=None, lower=(), judged=0, rounds=1,
        )  # fmt: skip


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
        speed = elsewhere.flops_per_second
        found = replace(
            found, tokens_per_second=found.tokens_per_second * speed / found.flops_per_second, flops_per_second=speed
        )
    size = len(prepared.facts)
    on_target = config.proxy.mode == "target" and wanted is None
    usual = default_runs(config, prepared) if on_target else 3 * (size + 1)
    runs = wanted.runs if wanted else config.swarm.runs or usual
    anchors = make_anchors(config, prepared, runs, range(config.swarm.seeds)) if on_target else None
    rates = (config.proxy.learning_rate,) if config.proxy.learning_rate else sweep_rates(config)
    if config.swarm.sizes:  # the lowest size sweeps, and the others have what the dial makes of its rate
        rates = rates if len(rates) == 1 else (rates[len(rates) // 2],)
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
        warms=wanted.warms if wanted else False, imitations=len(anchors.pairs) if anchors else 0,
    )  # fmt: skip
    if config.proxy.model is not None and config.swarm.workers is None and config.swarm.engine == "local":
        each = _worker_bytes(config, prepared, plan)
        plan = replace(plan, workers=workers_that_fit(workers, each, free_bytes("cpu") or 0.0))
    if config.swarm.sizes:
        plan = replace(plan, lower=_lower_sizes(config, prepared, plan, elsewhere))
    plan = _within_budget(config, prepared, plan)
    if anchors is not None:
        _refuse_full_disk(plan, path.parent)
    if config.swarm.engine == "local" and elsewhere is None and (free := free_bytes(device)) is not None:
        held = plan.workers * (_worker_bytes(config, prepared, plan) or 0.0)
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
    needed, free = 4.0 * (plan.trainable_parameters or plan.parameters) * plan.runs, shutil.disk_usage(folder).free
    if needed > FILL * free:
        raise UsageError(
            f"proxy.mode: target keeps the weights of {plan.runs} runs, {needed / 1e9:.3g} GB, and {folder} has "
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


def sweep_rates(config: SearchConfig) -> tuple[float, ...]:
    """Say which learning rates the sweep tries first."""
    if config.proxy.model is None:
        return RATES[config.proxy.size or "1M"]
    return FULL_RATES if config.proxy.lora_rank is None else LORA_RATES


def proxies_of(size: str) -> str:
    """Name the proxies of a size, as evidence."""
    return f"{size} proxies"


def scaled_rate(rate: float, size: str, to: str) -> float:
    """Carry a learning rate to another size of the dial: its usual rates are to each other as the best ones are."""
    middle = {name: rates[len(rates) // 2] for name, rates in RATES.items()}
    return rate if size == to else rate * middle[to] / middle[size]


def settings_of(config: SearchConfig, size: str) -> SearchConfig:
    """Give the run file of one of a ladder's sizes below the last: its proxies alone."""
    given = config.proxy.learning_rate
    rate = scaled_rate(given, config.swarm.sizes[-1], size) if given else None
    return config.model_copy(update={
        "gradients": "none", "reuse": (),
        "proxy": config.proxy.model_copy(update={"size": size, "learning_rate": rate}),
        "swarm": config.swarm.model_copy(update={"sizes": (), "lower_runs": ()}),
    })  # fmt: skip


def _lower_sizes(
    config: SearchConfig, prepared: Prepared, plan: Plan, elsewhere: Elsewhere | None
) -> tuple[LowerSize, ...]:
    """Measure the sizes below the last, and share out runs: as many as half of a search at the last size alone buys."""
    found = []
    for place, size in enumerate(config.swarm.sizes[:-1]):
        settings = settings_of(config, size)
        seen = measure(settings, prepared, plan.device)
        if elsewhere is not None:
            speed = elsewhere.flops_per_second
            tokens = seen.tokens_per_second * speed / seen.flops_per_second
            seen = replace(seen, tokens_per_second=tokens, flops_per_second=speed)
        rates = sweep_rates(settings)
        rate = settings.proxy.learning_rate
        found.append(LowerSize(
            size=size, runs=0, rates=(rate,) if rate else rates if not place else (rates[len(rates) // 2],),
            dtype=seen.dtype, tokens_per_second=seen.tokens_per_second, parameters=seen.parameters,
            products=seen.products, flops_per_second=seen.flops_per_second,
        ))  # fmt: skip
    few = len(prepared.facts) + 1
    last = _run_seconds(prepared, plan.fraction, plan)
    runs = config.swarm.lower_runs or [
        int(np.clip(LOWER_SHARE * 3 * few * last / len(found) / _run_seconds(prepared, plan.fraction, of), 2 * few,
                    MOST_LOWER_RUNS * few))
        for of in found
    ]  # fmt: skip
    return tuple(replace(of, runs=int(count)) for of, count in zip(found, runs, strict=True))


def _run_seconds(prepared: Prepared, fraction: float, of: Plan | LowerSize) -> float:
    """Estimate what one run of the base takes a worker."""
    base = prepared.domains.base * fraction
    tokens, labelled = float(base @ prepared.domains.lengths), float(base @ prepared.column("supervised_per_row"))
    length = tokens / max(float(base.sum()), 1e-9)
    return (of.products.training(tokens, labelled, length) + _judging(prepared, of.products)) / of.flops_per_second


def check_gradients(config: SearchConfig) -> None:
    """Refuse to differentiate whole trainings of a pretrained model, before anything is loaded."""
    if config.proxy.model is not None and config.gradients == "unrolled":
        raise UsageError(
            "gradients: unrolled needs scratch proxies; choose implicit, which differentiates the trained model"
        )


def workers_that_fit(workers: int, each: float | None, free: float) -> int:
    """Take no more workers than memory holds."""
    return workers if each is None else max(1, min(workers, int(FILL * free / each)))


def gradient_method(config: SearchConfig, plan: Plan) -> tuple[str, str]:
    """Say which responses a search estimates from its trained proxies, and why."""
    if config.gradients != "auto":
        return ("" if config.gradients == "none" else config.gradients), ""
    if config.has_metrics:
        return "", "auto: gradients are derivatives of losses, and a capability is judged by a metric"
    few, runs = len(config.domains) + 1, plan.runs
    if runs > few:
        return "", f"auto: {runs} runs are more than n + 1 = {few} for n domains, where gradients add little to losses"
    why = f"auto: {runs} runs are no more than n + 1 = {few} for n domains"
    needed = gradient_bytes(plan.trainable_parameters or plan.parameters, len(config.capabilities)) * min(
        plan.workers, config.swarm.seeds
    )
    if plan.memory is not None and needed > plan.memory:
        free = max(plan.memory, 0.0) / 2**30
        return (
            "",
            f"{why}, but they need {needed / 2**30:.2g} GiB of memory beside the training with {free:.2g} free",
        )
    return "implicit", why


def describe_plan(config: SearchConfig, prepared: Prepared, plan: Plan) -> dict[str, Any]:
    """Work out runs, steps, tokens and time of every stage."""
    whole = prepared.domains.base
    base = whole * plan.fraction
    length_D, labelled_D = prepared.domains.lengths, prepared.column("supervised_per_row")
    tokens, labelled = float(base @ length_D), float(base @ labelled_D)
    length = tokens / max(float(base.sum()), 1e-9)
    steps = config.batch.steps(float(base.sum()), tokens)
    training = plan.products.training(tokens, labelled, length)
    half = _judging(prepared, plan.products)  # the search rows; the check judges the verify rows as well
    warm_tokens, warm_rows = _warm_tokens(prepared)
    sweep = len(plan.rates) * SWEEP_MIXTURES if len(plan.rates) > 1 else 0
    swarm = plan.runs - (SWEEP_MIXTURES if sweep else 0)  # the sweep's runs at the chosen rate belong to it
    pairs = 2 * plan.looks[-1]
    method = gradient_method(config, plan)[0]
    passes = config.swarm.seeds if method else 0
    trainings = response_trainings(method, len(config.capabilities))
    warm = plan.products.training(warm_tokens, warm_tokens, length) + 2 * half
    stages: list[tuple[Stage, float, float, float, float]] = [  # name, runs, tokens, FLOPs, steps
        (Stage.WARM_START, 1, warm_tokens, warm, warm_rows / config.batch.mean_rows(warm_tokens / max(warm_rows, 1.0)))
        if config.proxy.model is None and (plan.warms or not config.reuse)
        else (Stage.ZERO_ROWS, 1, 0.0, 2 * half, 0.0),
        (Stage.LEARNING_RATE, sweep, tokens * sweep, (training + half) * sweep, sweep * steps),
        *([(Stage.JUDGING, plan.judged, 0.0, half * plan.judged, 0.0)] if plan.judged else []),
        (Stage.SWARM, swarm, tokens * swarm, (training + half) * swarm, swarm * steps),
        *([(Stage.IMITATION, plan.imitations, 0.0, half * plan.imitations, 0.0)] if plan.imitations else []),
        *([(Stage.GRADIENTS, passes, tokens * trainings * passes, training * trainings * passes, 0)] if passes else []),
    ]
    if plan.rounds > 1:
        later = plan.rounds - 1
        more, estimates = plan.more_runs * later, trainings * passes * later
        work = (more + estimates) * training + more * half
        stages.append((Stage.MORE_ROUNDS, more, tokens * (more + estimates), work, more * steps))
    stages.append((Stage.CHECK, pairs, tokens * pairs, (training + 2 * half) * pairs, pairs * steps))
    described: list[dict[str, Any]] = []
    for name, runs, trained, work, stage_steps in stages:
        workers = 1 if name.alone else plan.workers
        seconds = (work / plan.flops_per_second + runs * plan.metric_seconds) / workers
        described.append({
            "name": str(name), "runs": runs, "steps": round(stage_steps), "tokens": round(trained), "flops": work,
            "seconds": seconds, "cost": cost_of(config.cost, seconds, plan.devices),
        })  # fmt: skip
        if name is Stage.MORE_ROUNDS:
            described[-1]["rounds"] = plan.rounds - 1
    described = [*_describe_lower(config, prepared, plan), *described]
    seconds = sum(stage["seconds"] for stage in described)
    share = {str(Stage.MORE_ROUNDS): 0.0, str(Stage.CHECK): plan.looks[0] / max(plan.looks[-1], 1)}
    least = sum(s["seconds"] * share.get(s["name"], 1.0) for s in described)
    return {
        **asdict(plan),
        "further_runs": SWEEP_MIXTURES * MOST_EXTENSIONS if sweep else 0,
        "model": config.proxy.model,
        "own_trainer": config.proxy.command is not None,
        "size": config.proxy.size,
        "lora_rank": config.proxy.lora_rank,
        "context": asdict(prepared.context) | {"cut": {f.name: f.truncated for f in prepared.facts if f.truncated}},
        "pairs": plan.looks[0],
        "steps_per_run": steps,
        "stages": described,
        "total": {
            "runs": trained_runs((stage["name"], stage["runs"]) for stage in described),
            "tokens": int(sum(stage["tokens"] for stage in described)),
            "flops": sum(stage["flops"] for stage in described),
            "seconds": seconds,
            "device_hours": plan.devices * seconds / 3600,
            "cost": cost_of(config.cost, seconds, plan.devices),
        },
        "least_seconds": least,
        "least_cost": cost_of(config.cost, least, plan.devices),
        "worker_bytes": _worker_bytes(config, prepared, plan),
        "full_size": steps_taken(config, (float(whole.sum()), float(whole @ length_D))),
        "domains": [
            {"name": name, "shares": shares}
            for name, shares in zip(
                prepared.domains.names,
                domain_shares(config, whole, whole * length_D, whole * labelled_D),
                strict=True,
            )
        ],
        "price": config.cost.price,
        "currency": config.cost.currency,
    }


def _describe_lower(config: SearchConfig, prepared: Prepared, plan: Plan) -> list[dict[str, Any]]:
    """Give a stage for each of a ladder's sizes below the last: all that it trains."""
    stages = []
    for lower in plan.lower:
        settings = settings_of(config, lower.size)
        own = replace(plan.of_lower(lower), looks=(0,), memory=None)
        parts = [p for p in describe_plan(settings, prepared, own)["stages"] if p["name"] != Stage.CHECK]
        total = {key: sum(part[key] for part in parts) for key in ("runs", "steps", "tokens", "flops", "seconds")}
        cost = cost_of(config.cost, total["seconds"], plan.devices)
        stages.append({"name": str(Stage.LOWER_SIZES), "size": lower.size, **total, "cost": cost})
    return stages


def _judging(prepared: Prepared, products: Products) -> float:
    """Count the FLOPs of judging a proxy on half of every capability's reference rows."""
    length = float(prepared.domains.lengths.mean())
    rows = sum(capability.rows for capability in prepared.capabilities)
    labelled = sum(capability.supervised_tokens for capability in prepared.capabilities)
    return products.judging(rows * length / 2, labelled / 2, length)


def _warm_tokens(prepared: Prepared) -> tuple[float, float]:
    """Return tokens and rows of the warm start: equal tokens of every domain, none more than four times over."""
    sizes = np.array([domain.reserved * domain.tokens_per_row for domain in prepared.facts])
    goal = min(float(sizes.mean()), 4 * float(sizes.min()))
    return goal * len(sizes), float((goal / prepared.domains.lengths).sum())


def _worker_bytes(config: SearchConfig, prepared: Prepared, plan: Plan) -> float | None:
    """Estimate a worker's memory where that was checked: on a CPU."""
    longest = float(max(domain.longest for domain in prepared.facts))
    at_once = micro_batch_tokens(config, plan.device) or CPU_MICRO_BATCH
    return worker_bytes(plan.products, plan.parameters, at_once, longest) if plan.device == "cpu" else None


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
            raise UsageError(
                f"{limit} is too little: one round of {plan.runs} proxies at proxy.fraction {plan.fraction:g} needs "
                f"about {_budget_text(config, needed, plan)} here; raise it, or lower --runs or proxy.fraction"
            )
        return plan
    full = describe_plan(config, prepared, replace(plan, fraction=1.0))["total"]["seconds"]
    none = describe_plan(config, prepared, replace(plan, fraction=1e-9))["total"]["seconds"]
    fraction = (allowed - none) / (full - none)
    least = LEAST_PROXY_ROWS / float(prepared.domains.base.sum())
    if fraction < least:
        needed = (none + least * (full - none)) / 0.9
        raise UsageError(
            f"{limit} is too little: {plan.runs} proxies of {LEAST_PROXY_ROWS} rows and their check need about "
            f"{_budget_text(config, needed, plan)} here; raise it, or lower --runs, --rounds or the proxy's size"
        )
    return replace(plan, fraction=float(np.floor(min(fraction, largest_fraction(prepared)) * 1e6) / 1e6))


def _budget_text(config: SearchConfig, seconds: float, plan: Plan) -> str:
    """Write a time, and what it costs where a price is known."""
    cost = cost_of(config.cost, seconds, plan.devices)
    price = "" if cost is None else f" ({money(cost, config.cost.currency)})"
    return f"{seconds / 3600:.2g} h{price}"
