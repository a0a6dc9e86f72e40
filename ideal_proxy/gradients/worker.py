"""A worker of a swarm that also estimates responses of finished proxies, and their mean over seeds.

An estimate is a run like any other: its folder holds `responses.npz`, the marker comes last, and one that is there is
never computed again. Implicit estimates take a trained proxy's weights, unrolled ones repeat its training.

Legend: S seeds, J capabilities, D domains.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ideal_proxy.errors import UserError
from ideal_proxy.gradients.influence import InfluenceSettings, responses
from ideal_proxy.gradients.records import ResponseMatrix
from ideal_proxy.gradients.unrolled import unrolled_responses
from ideal_proxy.proxy import count_products, load_weights, of_rows, run_flops
from ideal_proxy.store import is_complete
from ideal_proxy.swarm import (
    IMPLICIT_TRAININGS,
    MODEL,
    RESPONSES,
    WARM_RUN,
    RunSpec,
    Worker,
    build_model,
    draw_run,
    main,
    save_result,
)


class GradientWorker(Worker):
    """Trains proxies, and differentiates those that are trained."""

    def run(self, spec: RunSpec, checkpoint_seconds: float) -> None:
        """Do one run, a training or an estimate."""
        if not spec.responses:
            super().run(spec, checkpoint_seconds)
            return
        started = time.monotonic()
        context, runs = self.context, self.run_dir / "runs"
        start = runs / (WARM_RUN if spec.responses == "unrolled" else spec.trained)
        if not is_complete(start) or not (start / MODEL).exists():
            raise UserError(f"{start / MODEL} is missing, so no response can be estimated from it")
        model = build_model(context)
        load_weights(model, start / MODEL)
        model.to(self.device)
        every = context.domain_rows()
        domain_R, row_R = draw_run(context, every, spec)
        references = {name: self._reference(name) for name in (spec.references or context.references)}
        used = [d for d, rows in enumerate(spec.rows) if rows]
        settings = replace(context.train, learning_rate=spec.learning_rate)
        if spec.responses == "unrolled":
            place = np.zeros(len(every), dtype=np.int64)
            place[used] = np.arange(len(used))
            domains = {context.domains[d]: every[d] for d in used}
            found = unrolled_responses(model, (place[domain_R], row_R), domains, references, settings)
        else:
            drawn = {context.domains[d]: every[d].select(np.unique(row_R[domain_R == d])) for d in used}
            chosen = InfluenceSettings(
                seed=spec.seed, loss=settings.loss, autocast=torch.bfloat16 if settings.dtype == "bfloat16" else None
            ).within(IMPLICIT_TRAININGS, sum(spec.rows), len(used) + len(references))
            found = responses(model, drawn, references, [spec.rows[d] for d in used], settings=chosen)
        if not np.isfinite(found.M).all():
            raise UserError("the responses are not finite; choose a smaller learning rate, or search without gradients")
        # Every token of an estimate went forward and backward once; the shares of labels and pairs are the mixture's.
        length_R = of_rows([rows.lengths for rows in every], domain_R, row_R)
        labels = of_rows([rows.supervised_tokens for rows in every], domain_R, row_R).sum()
        tokens = found.cost.gradient_tokens
        scale = tokens / float(length_R.sum())
        flops = run_flops(count_products(model), tokens, scale * float(labels), scale * float(length_R @ length_R))
        folder = runs / spec.id
        folder.mkdir(parents=True, exist_ok=True)
        spread_out(found, context.domains).save(folder / RESPONSES)
        metrics = {
            "rows": 0, "tokens": tokens, "supervised_tokens": 0, "steps": 0, "flops": flops,
            "train_seconds": time.monotonic() - started, "evaluate_seconds": 0.0,
        }  # fmt: skip
        save_result(folder, context, spec, {}, metrics)
        self.say("finished", run=spec.id)


def spread_out(matrix: ResponseMatrix, domains: Sequence[str]) -> ResponseMatrix:
    """Give a matrix a column for every domain, NaN where the mixture drew no row of it."""
    at = [list(domains).index(name) for name in matrix.domains]
    M, se = (np.full((len(matrix.capabilities), len(domains)), np.nan) for _ in range(2))
    q, w = np.zeros(len(domains)), np.zeros(len(domains))
    M[:, at], se[:, at], q[at], w[at] = matrix.M, matrix.se, matrix.q, matrix.w
    return replace(matrix, domains=tuple(domains), M=M, se=se, q=q, w=w)


if __name__ == "__main__":
    main(GradientWorker)
