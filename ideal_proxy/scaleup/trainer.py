"""transformers' `Trainer`, fed whole optimiser steps, with the proxies' optimiser, schedule and loss.

An item of the training set is one optimiser step; see `scaleup.steps`. Legend: S steps, J capabilities.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from ideal_proxy.data import TokenRows
from ideal_proxy.proxy import RowLosses, TrainSettings, adamw, evaluate, learning_rates
from ideal_proxy.scaleup.steps import Step, StepSet, accumulate, check_sharded


class MixtureTrainer(Trainer):
    """`Trainer` with the proxies' optimiser, schedule and loss, judged by the capabilities' reference losses."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        steps: StepSet,
        settings: TrainSettings,
        references: dict[str, TokenRows],
        callbacks: list[TrainerCallback],
        *,
        sharded: bool = False,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=steps,
            eval_dataset=references,
            callbacks=callbacks,
            data_collator=_one,
        )
        self.settings = settings
        self.references = references
        self.sharded = sharded
        self._checked = False

    def get_train_dataloader(self) -> DataLoader[Step]:
        """Return the steps in order; every process sees every step, and takes its own rows of it."""
        steps: Any = self.train_dataset
        return DataLoader(steps, batch_size=1, shuffle=False, collate_fn=_one)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the proxies' AdamW: decay on matrices only."""
        if self.optimizer is None:
            trained: Any = model or self.model
            self.optimizer = adamw(trained, self.settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the proxies' schedule over this run's own steps."""
        if self.lr_scheduler is None:
            share = learning_rates(self.settings, num_training_steps) / self.settings.learning_rate
            owner: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                owner, lambda step: float(share[min(step, len(share) - 1)])
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Add the gradient of one whole step; the number of its supervised tokens comes with it."""
        del num_items_in_batch
        if not self._checked:
            check_sharded(model, wanted=self.sharded)
            self._checked = True
        model.train()
        return accumulate(
            model, self.accelerator.unwrap_model(model), inputs["step"], world=self.args.world_size,
            backward=self.accelerator.backward, no_sync=lambda: self.accelerator.no_sync(model),
            autocast=torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else None,
        )  # fmt: skip

    def floating_point_ops(self, inputs: Any) -> int:
        """Count nothing: inputs are steps, not tensors."""
        del inputs
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure every capability's reference loss, nats per supervised token."""
        del eval_dataset, ignore_keys
        found = {f"{metric_key_prefix}_{name}": losses.mean for name, losses in self.row_losses().items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def row_losses(self) -> dict[str, RowLosses]:
        """Measure every reference row of every capability."""
        return reference_losses(self.model, self.references, self.settings)


def reference_losses(model: Any, references: dict[str, TokenRows], settings: TrainSettings) -> dict[str, RowLosses]:
    """Measure every reference row of every capability."""
    autocast = torch.bfloat16 if settings.dtype == "bfloat16" else None
    at_once = settings.micro_batch_tokens
    return {name: evaluate(model, rows, batch_tokens=at_once, autocast=autocast) for name, rows in references.items()}


def _one(items: list[Step]) -> dict[str, Step]:
    return {"step": items[0]}
