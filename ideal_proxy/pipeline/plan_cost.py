"""A plan of a search, and what each of its stages costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ideal_proxy.config import SearchConfig
from ideal_proxy.pipeline.machine import micro_batch_tokens
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.stage import Stage, trained_runs
from ideal_proxy.pipeline.weights import domain_shares, steps_taken
from ideal_proxy.proxy import RATES, Products, cost_of, gradient_bytes, worker_bytes
from ideal_proxy.sections import size_name
from ideal_proxy.swarm import response_trainings

CPU_MICRO_BATCH = 2048  # tokens; as proxy.model.MICRO_BATCH_TOKENS, which needs torch
# Of pretrained proxies: a proxy sees some hundred to thousand rows, few steps, so the rates reach above those of a
# full-size run. The sweep goes on by factors of two where the best lies at an edge.
FULL_RATES, LORA_RATES = (2.5e-5, 1e-4, 4e-4), (1e-4, 4e-4, 1.6e-3)
FILL = 0.8  # of the free memory is used
SWEEP_MIXTURES, MOST_EXTENSIONS = 3, 3  # of the sweep of rates, which goes on by a factor of 2 each


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSize:
    """One of a ladder's sizes below the last."""

    size: str  # of the dial, or a pretrained model
    runs: int  # proxies
    rates: tuple[float, ...]  # learning rates of the sweep; one entry where it is scaled from another size's
    dtype: str  # precision of the products
    tokens_per_second: float  # of one worker in training, measured here
    parameters: int  # of a proxy
    products: Products  # multiply-adds of its matrix products
    flops_per_second: float  # of one worker
    trainable_parameters: int | None = None  # as a plan's


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sizes of a search."""

    fraction: float  # φ, the share of the full-size volumes that a proxy sees
    rates: tuple[float, ...]  # learning rates of the sweep, rising; one entry where it is given
    runs: int  # proxies of the first round
    more_runs: int  # proxies of a later round
    rounds: int  # most rounds
    looks: tuple[int, ...]  # numbers of pairs after which the verdict is looked at
    workers: int  # processes side by side
    dtype: str  # precision of the products
    device: str  # where proxies train
    tokens_per_second: float  # of one worker in training, measured here
    parameters: int  # of a proxy
    products: Products  # multiply-adds of a proxy's matrix products
    flops_per_second: float  # of one worker in training, by the same measurement, or given for another machine
    devices: int = 1  # GPUs that the workers share, or one machine: what is paid for while the search runs
    # what the metrics of a run take, measured here on an untrained proxy, and what a trainer of the user's own takes
    # for a few rows; 0 where there are none
    metric_seconds: float = 0.0
    trainable_parameters: int | None = None  # of the parameters those that training changes; None is all
    memory: float | None = None  # bytes that gradients may take beside the workers; None where that is not known
    judged: int = 0  # earlier runs whose stored weights are judged; 0 without reuse
    fresh_runs: int = 0  # proxies of the first round that a search without reuse would have; 0 without reuse
    imitations: int = 0  # mixtures that mean weights stand for; 0 but with mode: target
    lower: tuple[LowerSize, ...] = ()  # a ladder's sizes below the last, which all else here is about
    warms: bool = False  # whether a search with reuse makes a warm start of its own

    def of_lower(self, lower: LowerSize) -> Plan:
        """Give the plan of one of the sizes below."""
        return replace(
            self, rates=lower.rates, runs=lower.runs, dtype=lower.dtype, tokens_per_second=lower.tokens_per_second,
            parameters=lower.parameters, products=lower.products, flops_per_second=lower.flops_per_second,
            trainable_parameters=lower.trainable_parameters, lower=(), judged=0, rounds=1,
        )  # fmt: skip


def sweep_rates(config: SearchConfig) -> tuple[float, ...]:
    """Say which learning rates the sweep tries first."""
    if config.proxy.model is None:
        return RATES[config.proxy.size or "1M"]
    return FULL_RATES if config.proxy.lora_rank is None else LORA_RATES


def proxies_of(size: str) -> str:
    """Name the proxies of a size, as evidence."""
    return f"{size_name(size)} proxies"


def scaled_rate(rate: float, size: str, to: str) -> float:
    """Carry a learning rate to another size of the dial: its usual rates are to each other as the best ones are."""
    middle = {name: rates[len(rates) // 2] for name, rates in RATES.items()}
    # Between pretrained models it stays: LoRA's best rate hardly moves with size.
    return rate if size == to or size not in middle else rate * middle[to] / middle[size]


def sweeps_every_size(config: SearchConfig) -> bool:
    """Tell whether the rate of one size of a ladder says nothing of the next: where all pretrained weights move."""
    return config.proxy.model is not None and config.proxy.lora_rank is None


def settings_of(config: SearchConfig, size: str) -> SearchConfig:
    """Give the run file of one of a ladder's sizes below the last: its proxies alone."""
    given = config.proxy.learning_rate
    rate = scaled_rate(given, config.swarm.sizes[-1], size) if given else None
    of_size = {"size": size} if config.proxy.model is None else {"model": size, "gguf": None, "revision": None}
    return config.model_copy(update={
        "gradients": "none", "reuse": (),
        "proxy": config.proxy.model_copy(update=of_size | {"learning_rate": rate}),
        "swarm": config.swarm.model_copy(update={"sizes": (), "lower_runs": ()}),
    })  # fmt: skip


def run_seconds(prepared: Prepared, fraction: float, of: Plan | LowerSize) -> float:
    """Estimate what one run of the base takes a worker."""
    base = prepared.domains.base * fraction
    tokens, labelled = float(base @ prepared.domains.lengths), float(base @ prepared.column("supervised_per_row"))
    length = tokens / max(float(base.sum()), 1e-9)
    return (of.products.training(tokens, labelled, length) + judging(prepared, of.products)[0]) / of.flops_per_second


def gradient_method(config: SearchConfig, plan: Plan) -> tuple[str, str]:
    """Say which responses a search estimates from its trained proxies, and why."""
    if config.gradients != "auto":
        return ("" if config.gradients == "none" else config.gradients), ""
    if config.has_metrics:
        return "", "auto: gradients are derivatives of losses, and a capability is judged by a metric"
    if config.proxy.command is not None:
        return "", "auto: your own trainer trains the proxies, and their weights are not known here"
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
    half, rest = judging(prepared, plan.products)
    warm_tokens, warm_rows = _warm_tokens(prepared)
    sweep = len(plan.rates) * SWEEP_MIXTURES if len(plan.rates) > 1 else 0
    swarm = plan.runs - (SWEEP_MIXTURES if sweep else 0)  # the sweep's runs at the chosen rate belong to it
    pairs = 2 * plan.looks[-1]
    method = gradient_method(config, plan)[0]
    passes = config.swarm.seeds if method else 0
    trainings = response_trainings(method, len(config.capabilities))
    warm = plan.products.training(warm_tokens, warm_tokens, length) + half + rest
    stages: list[tuple[Stage, float, float, float, float]] = [  # name, runs, tokens, FLOPs, steps
        (Stage.WARM_START, 1, warm_tokens, warm, warm_rows / config.batch.mean_rows(warm_tokens / max(warm_rows, 1.0)))
        if config.proxy.model is None and (plan.warms or not config.reuse)
        else (Stage.ZERO_ROWS, 1, 0.0, half + rest, 0.0),
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
    stages.append((Stage.CHECK, pairs, tokens * pairs, (training + half + rest) * pairs, pairs * steps))
    described: list[dict[str, Any]] = []
    for name, runs, trained, work, stage_steps in stages:
        workers = 1 if name.alone else plan.workers
        metrics = plan.metric_seconds * (_check_items(config, prepared) if name is Stage.CHECK else 1.0)
        seconds = (work / plan.flops_per_second + runs * metrics) / workers
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
        "worker_bytes": memory_of_worker(config, prepared, plan),
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


def _check_items(config: SearchConfig, prepared: Prepared) -> float:
    """Say how many times the items of a search's run one of the check has, whose metrics were timed on the former."""
    if config.swarm.judge_rows is None or not config.has_metrics:
        return 1.0
    judged = [
        (of.search_rows, of.verify_rows)
        for of, capability in zip(prepared.capabilities, config.capabilities, strict=True)
        if capability.metric is not None
    ]
    return sum(verify for _, verify in judged) / max(sum(search for search, _ in judged), 1)


def judging(prepared: Prepared, products: Products) -> tuple[float, float]:
    """Count the FLOPs of judging a proxy on every capability's rows of the search, and on those of the check."""
    length = float(prepared.domains.lengths.mean())
    labelled = [of.supervised_tokens / max(of.rows, 1) for of in prepared.capabilities]

    def of_rows(counts: list[int]) -> float:
        supervised = sum(n * each for n, each in zip(counts, labelled, strict=True))
        return products.judging(sum(counts) * length, supervised, length)

    return (
        of_rows([of.search_rows for of in prepared.capabilities]),
        of_rows([of.verify_rows for of in prepared.capabilities]),
    )


def _warm_tokens(prepared: Prepared) -> tuple[float, float]:
    """Return tokens and rows of the warm start: equal tokens of every domain, none more than four times over."""
    sizes = np.array([domain.reserved * domain.tokens_per_row for domain in prepared.facts])
    goal = min(float(sizes.mean()), 4 * float(sizes.min()))
    return goal * len(sizes), float((goal / prepared.domains.lengths).sum())


def memory_of_worker(config: SearchConfig, prepared: Prepared, plan: Plan) -> float | None:
    """Estimate a worker's memory where that was checked: on a CPU."""
    longest = float(max(domain.longest for domain in prepared.facts))
    at_once = micro_batch_tokens(config, plan.device) or CPU_MICRO_BATCH
    return worker_bytes(plan.products, plan.parameters, at_once, longest) if plan.device == "cpu" else None
