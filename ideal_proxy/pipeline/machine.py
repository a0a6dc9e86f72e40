"""What this machine does with a search's proxies: where they train, how fast, in which precision, how many at once."""

from __future__ import annotations

import functools
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from joblib import cpu_count

from ideal_proxy.batching import BATCH_ROWS
from ideal_proxy.config import SearchConfig
from ideal_proxy.data import TokenRows
from ideal_proxy.errors import UsageError
from ideal_proxy.gradients import refuse_uncovered
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.proxy import Products, TrainSettings, count_products
from ideal_proxy.swarm import (
    ROWS,
    RunSpec,
    SwarmContext,
    do_command,
    judged,
    metric_specs,
    prepare_context,
    probe,
    save_lines,
    trainer_of,
    write_command,
)

PROBED_ROWS = 16  # of each set, to try a trainer of the user's own with
FEW_ROWS, MUCH_SLOWER = 8, 5.0  # a precision that takes so many times as long for a few rows is not timed on all
MEASURED_ROWS = 64  # at most, of a step
MEASURED_TOKENS = 1024  # of a pretrained proxy; a scratch proxy trains on six steps


@dataclass(frozen=True, slots=True)
class Measured:
    """What a proxy that was trained for a moment showed."""

    tokens_per_second: float  # of one worker
    dtype: str  # the precision chosen
    parameters: int  # of the proxy
    products: Products  # multiply-adds of its matrix products
    flops_per_second: float  # of one worker
    trainable_parameters: int | None = None  # those that training changes; None is all

    def at(self, speed: float) -> Measured:
        """Give it for a machine of another speed, in FLOPs a second."""
        tokens = self.tokens_per_second * speed / self.flops_per_second
        return replace(self, tokens_per_second=tokens, flops_per_second=speed)


def measure(config: SearchConfig, prepared: Prepared, device: str) -> Measured:
    """Train a throw-away proxy for a moment; return its speed in the faster precision, and its size."""
    import torch

    from ideal_proxy.proxy import trainable_parameters

    parts = [prepared.domain_rows(index) for index in range(len(prepared.facts))]
    mean = float(prepared.domains.lengths.mean())
    batch = min(round(config.batch.mean_rows(mean)), MEASURED_ROWS)  # what counts for speed is the micro-batch
    if config.proxy.model is not None:  # a third of it warms up; long enough to tell, short enough to wait for
        batch = min(batch, max(1, round(MEASURED_TOKENS / 6 / mean)))
    rng = np.random.default_rng(0)
    domain = rng.integers(0, len(parts), 6 * batch)
    row = np.array([rng.integers(0, len(parts[d])) for d in domain])
    timed = list(zip(domain[2 * batch :], row[2 * batch :], strict=True))
    tokens = int(sum(parts[d].lengths[r] for d, r in timed))
    supervised = [rows.supervised_tokens for rows in parts]
    labelled = int(sum(supervised[d][r] for d, r in timed))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        few, quick, speeds = slice(min(FEW_ROWS, batch)), {}, {}
        choices = [config.proxy.dtype] if config.proxy.dtype != "auto" else ["float32"]
        exact = config.gradients == "unrolled"  # differentiating through a training in bfloat16 would not be
        if config.proxy.dtype == "auto" and not exact and (device != "cpu" or config.proxy.size != "0.1M"):
            choices.append("bfloat16")
        for dtype in choices:
            model = _throw_away(config, prepared).to(device)
            if config.gradients == "implicit":
                refuse_uncovered(model)
            settings = TrainSettings(
                learning_rate=1e-4, batch_rows=batch, dtype=dtype, micro_batch_tokens=micro_batch_tokens(config, device)
            )
            seconds = functools.partial(_seconds, model, domain, row, parts, settings, device)
            if len(choices) > 1:  # a processor without bfloat16 takes up to sixty times as long for all rows
                seconds(few)
                quick[dtype] = seconds(few)
                if quick[dtype] > MUCH_SLOWER * quick["float32"]:
                    continue
            seconds(slice(2 * batch))
            speeds[dtype] = tokens / seconds(slice(2 * batch, None))
    finally:
        torch.set_num_threads(threads)
    # Half as fast again before precision is given up: a choice by timing must not flip with the machine's mood.
    chosen = "bfloat16" if speeds.get("bfloat16", 0) > 1.5 * speeds.get("float32", np.inf) else choices[0]
    products = count_products(model)
    flops = products.training(tokens, labelled, tokens / len(timed))
    parameters = sum(p.numel() for p in model.parameters())
    return Measured(
        speeds[chosen], chosen, parameters, products, speeds[chosen] / tokens * flops, trainable_parameters(model)
    )


def _seconds(
    model: Any, domain: Any, row: Any, parts: list[TokenRows], settings: TrainSettings, device: str, which: slice
) -> float:
    """Train on some of the rows; say how long it took."""
    import torch

    from ideal_proxy.proxy import train

    started = time.perf_counter()
    train(model, (domain[which], row[which]), parts, settings)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def micro_batch_tokens(config: SearchConfig, device: str) -> int | None:
    """Say how many tokens a proxy takes at a time."""
    if config.proxy.model is None:
        return None
    from ideal_proxy.proxy import STEP_TOKENS

    return STEP_TOKENS.get(device.partition(":")[0], 2048)


def _throw_away(config: SearchConfig, prepared: Prepared) -> Any:
    """Build a proxy to measure with."""
    if config.proxy.model is None:
        from ideal_proxy.proxy import build_proxy

        return build_proxy(config.proxy.size or "1M", prepared.vocabulary, prepared.context.tokens, 0)
    from ideal_proxy.proxy import build_pretrained_proxy

    return build_pretrained_proxy(
        prepared.kept_base, lora_rank=config.proxy.lora_rank, seed=0,
        trust_remote_code=config.proxy.trust_remote_code,
    )  # fmt: skip


def probe_metrics(config: SearchConfig, prepared: Prepared, device: str) -> float:
    """Measure every metric once; one that cannot work is found before anything is trained."""
    model = _throw_away(config, prepared)
    return probe(
        metric_specs(config, "search"), model, prepared.folder / "tokenizer", device=device,
        keys=lambda key: TokenRows.load(prepared.folder / key).keys.tolist(),
    )  # fmt: skip


def probe_command(config: SearchConfig, prepared: Prepared, device: str) -> float:
    """Run the user's own trainer once on a few rows: one that cannot work is found before any run; return seconds."""
    trainer = trainer_of(config)
    assert trainer is not None
    with tempfile.TemporaryDirectory(prefix="ideal-proxy-") as scratch:
        folder, few = Path(scratch) / "swarm", np.arange(PROBED_ROWS)
        domains: list[TokenRows] = []
        references: list[TokenRows] = []
        for kind, count, kept in (
            ("domain", len(prepared.facts), domains), ("search", len(prepared.capabilities), references)
        ):  # fmt: skip
            for index in range(count):
                rows = TokenRows.load(prepared.folder / f"{kind}-{index}")
                kept.append(rows.select(few[: len(rows)]))
                lines = (prepared.folder / f"{kind}-{index}.jsonl").read_bytes().splitlines(keepends=True)
                save_lines(folder / ROWS / f"{kind}-{index}.jsonl", lines[:PROBED_ROWS])
        counts = tuple(len(part) for part in domains)
        context = SwarmContext(
            folder=folder, domains=tuple(prepared.domains.names), available=counts, size="",
            references=tuple(f"search-{j}" for j in range(len(references))), vocab_size=prepared.vocabulary,
            context=prepared.context.tokens, device=device, trainer=trainer.identity,
            train=TrainSettings(batch_rows=config.batch.rows or BATCH_ROWS, batch_tokens=config.batch.tokens),
        )  # fmt: skip
        write_command(folder, trainer)
        spec = RunSpec(
            id="probe", rows=counts, volumes=counts, seed=config.seed, role="probe",
            learning_rate=config.proxy.learning_rate or 1e-5, timeout_seconds=config.proxy.timeout_seconds,
        )  # fmt: skip
        prepare_context(context, domains=domains, references=references)
        (Path(scratch) / "probe").mkdir()
        started = time.monotonic()
        do_command(
            context, Path(scratch) / "probe", spec, device,
            judge=lambda model, _: judged(model, context, dict(zip(context.references, references, strict=True))),
        )  # fmt: skip
        return time.monotonic() - started


def _checked_device(name: str) -> str:
    """Return the device that the run file names, or say that there is none."""
    import torch

    from ideal_proxy.proxy import best_device

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        best = best_device()
        raise UsageError(f"proxy.device is {name!r}, which PyTorch has not here; choose auto or {best}") from error
    return name


def planned_device(config: SearchConfig) -> str:
    """Return where proxies train: what the run file says, what a Ray worker gets, or the best device here."""
    if config.proxy.device != "auto":
        return _checked_device(config.proxy.device)
    from ideal_proxy.proxy import best_device

    if config.swarm.engine == "slurm":
        from ideal_proxy.swarm import need_slurm

        need_slurm(config.swarm.address)  # where it is missing, before anything is measured
    if config.swarm.engine == "local":
        return best_device()
    device = "cuda" if config.swarm.gpus else "cpu"
    if device == "cuda" and best_device() != "cuda":
        raise UsageError(
            "swarm.gpus is set but this machine has no GPU; start the search on a machine like those of the workers, "
            "for speed and precision are measured there"
        )
    return device


def default_workers(config: SearchConfig, device: str) -> int:
    """Return how many workers there is room for, on the cluster or here."""
    if config.swarm.engine == "local":
        return cpu_count() if device == "cpu" else 1
    if config.swarm.engine == "slurm":
        from ideal_proxy.swarm import DEFAULT_JOBS

        return DEFAULT_JOBS
    from ideal_proxy.swarm import cluster_workers, connect

    connect(config.swarm.address)
    return max(1, cluster_workers(1, config.swarm.gpus))


def free_bytes(device: str) -> float | None:
    """Return the memory that is free where proxies train; None where it cannot be told."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None
    return float(psutil.virtual_memory().available) if device == "cpu" else None


def gpus() -> int:
    """Return the number of GPUs here."""
    import torch

    return max(1, torch.cuda.device_count())
