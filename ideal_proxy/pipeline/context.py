"""What all runs of a search share: domains split for warm start and mixtures, reference sets, workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ideal_proxy.batching import BATCH_ROWS
from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.machine import micro_batch_tokens
from ideal_proxy.pipeline.plan_cost import Plan
from ideal_proxy.pipeline.prepare import Prepared, reserved_rows
from ideal_proxy.pipeline.row_record import RECORD, Heritage, record_of, save_record
from ideal_proxy.proxy import TrainSettings
from ideal_proxy.store import atomic_write_bytes, copy_checked
from ideal_proxy.swarm import (
    TOKENIZER,
    WARM_WEIGHTS,
    Pool,
    SwarmContext,
    place_rows,
    prepare_context,
    trainer_of,
    write_command,
)


def cluster(config: SearchConfig, context: SwarmContext, folder: Path, worker: str) -> Pool | None:
    """Return the workers of a cluster where the run file asks for them."""
    if config.swarm.engine == "local":
        return None
    if config.swarm.engine == "slurm":
        from ideal_proxy.swarm import SlurmPool

        return SlurmPool(
            context, folder, address=config.swarm.address, workers=config.swarm.workers, gpus=config.swarm.gpus,
            options=config.swarm.slurm, worker=worker,
        )  # fmt: skip
    from ideal_proxy.swarm import RayPool

    return RayPool(
        context, folder, address=config.swarm.address, workers=config.swarm.workers, gpus=config.swarm.gpus,
        worker=worker,
    )  # fmt: skip


def reference(capability: int, half: str) -> str:
    """Name a reference set in the swarm."""
    return f"{half}-{capability}"


def make_context(
    config: SearchConfig, prepared: Prepared, plan: Plan, folder: Path, heritage: Heritage | None = None
) -> SwarmContext:
    """Split every domain into what warms the proxies up and what their mixtures draw, and write both."""
    # Pretrained proxies need no warm start: every row may be drawn.
    scratch = config.proxy.model is None
    pools, reserved, available = [], [], []
    for index, domain in enumerate(prepared.facts):
        rows = prepared.domain_rows(index)
        mask = reserved_rows(config, rows, heritage)
        if mask.all():
            raise UserError(
                f"domain {domain.name}: every row of it was taken by the warm start that is reused; add rows"
            )
        pools.append(rows.select(np.flatnonzero(~mask)))
        reserved.append(rows.select(np.flatnonzero(mask)))
        available.append(max(1, min(int(plan.fraction * domain.available), len(pools[-1]))))
    trainer = trainer_of(config)
    names = [(j, half) for half in ("search", "verify") for j in range(len(prepared.capabilities))]
    context = SwarmContext(
        folder=folder,
        domains=tuple(prepared.domains.names),
        references=tuple(reference(j, half) for j, half in names),
        available=tuple(available),
        size=config.proxy.size or "",
        vocab_size=prepared.vocabulary,
        context=prepared.context.tokens,
        train=TrainSettings(
            batch_rows=config.batch.rows or BATCH_ROWS,
            batch_tokens=config.batch.tokens,
            loss=config.loss,
            dtype=plan.dtype,
            micro_batch_tokens=micro_batch_tokens(config, plan.device),
        ),
        init_seed=config.seed,
        warm=scratch,
        warm_from=heritage.warm_of(config.proxy.size or "") if heritage else "",
        warm_learning_rate=plan.rates[len(plan.rates) // 2],
        device=plan.device,
        base=prepared.base_model.get("fingerprint", ""),
        lora_rank=config.proxy.lora_rank,
        trust_remote_code=config.proxy.trust_remote_code,
        trainer="" if trainer is None else trainer.identity,
    )
    if trainer is not None:
        write_command(folder, trainer)
        place_rows(prepared.folder, folder, len(prepared.facts), len(prepared.capabilities))
    if config.has_metrics:  # what a metric loads beside the model
        copy_checked(prepared.folder / "tokenizer", folder / TOKENIZER)
    if not scratch:
        from ideal_proxy.proxy import place_base

        place_base(
            prepared.kept_base, context.base_folder, trust_remote_code=context.trust_remote_code,
            narrow=context.lora_rank is not None and plan.dtype == "bfloat16",
        )  # fmt: skip
    if heritage is not None and context.warm_from and not (folder / WARM_WEIGHTS).is_file():
        atomic_write_bytes(folder / WARM_WEIGHTS, (heritage.folder / WARM_WEIGHTS).read_bytes())
    references = [prepared.reference_rows(j, half) for j, half in names]
    context = prepare_context(context, domains=pools, references=references, reserved=reserved if scratch else ())
    record = record_of(
        context.domains, pools, reserved, context.available, plan.fraction, context.references, references
    )
    save_record(folder.parent / RECORD, record)
    return context
