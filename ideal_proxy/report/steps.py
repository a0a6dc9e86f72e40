"""Optimiser steps, what each domain is of a mixture and which proxies measured it, as text that fits 60 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ideal_proxy.terminal import table

TELLING = 0.02  # a smaller difference of steps or tokens is not worth a word
LOSSES = {"token": "a mean over the step's supervised tokens", "row": "a mean over the step's rows of each row's mean"}


def steps_text(steps: dict[str, Any]) -> str:
    """Say how many full-size optimiser steps base and proposal take, and where that differs."""
    text = (
        f"Optimiser steps at full size ({steps['batch']} each, loss: {LOSSES[steps['loss']]}): base {steps['base']:,}"
    )
    if "proposal" not in steps:
        may = "; the proposal's may differ, for the budget holds other than what a step counts: budget: {steps: keep}"
        return f"{text}{may + ' holds them' if steps['may_differ'] else ''}."
    text += f", proposal {steps['proposal']:,}"
    if abs(steps["change"]) <= TELLING:
        return text + "."
    more = "more" if steps["change"] > 0 else "fewer"
    tokens = steps["tokens_change"]
    at = (
        "the same number of tokens"
        if abs(tokens) <= TELLING
        else f"{abs(tokens):.0%} {'more' if tokens > 0 else 'fewer'} tokens"
    )
    text += f": the proposal takes {abs(steps['change']):.0%} {more} steps at {at}"
    return text + "; budget: {steps: keep} holds them."


def shares_table(title: str, entries: Sequence[dict[str, Any]]) -> str:
    """Lay out each domain's share of rows, tokens, supervised tokens and loss weight."""
    rows = [
        (
            entry["name"],
            *(f"{entry['shares'][key]:.1%}" for key in ("rows", "tokens", "supervised_tokens", "loss_weight")),
        )
        for entry in entries
    ]
    return table(title, ("domain", "rows", "tokens", "supervised", "loss weight"), rows)


def proxy_text(proxy: dict[str, Any]) -> str:
    """Name the proxies: "a 0.84M proxy", or the pretrained model with its size and how it is trained."""
    digits = 2 if proxy["parameters"] < 1e8 else 3
    millions = f"{proxy['parameters'] / 1e6:.{digits}g}M"
    if not proxy.get("model"):
        return f"a {millions} proxy"
    rank = proxy.get("lora_rank")
    how = f"LoRA of rank {rank} trains {proxy['trainable_parameters'] / 1e6:.2g}M" if rank else "all trained"
    return f"{Path(proxy['model']).name} ({millions} parameters, {how})"
