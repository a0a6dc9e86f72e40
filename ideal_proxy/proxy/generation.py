"""Answers of a model to prompts, greedy or sampled, and how they went."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from ideal_proxy.data import TokenRows

PROMPTS_AT_ONCE = 16


def prompts_of(rows: TokenRows) -> tuple[list[list[int]], list[list[int]]]:
    """Part rows before their last answer: prompts with all that opens the answer, and the answers with their end."""
    prompts, answers = [], []
    for n in range(len(rows)):
        first, end = int(rows.offsets[n]), int(rows.offsets[n + 1])
        loss = np.asarray(rows.supervised[first:end])
        last = int(np.flatnonzero(loss)[-1])
        before = np.flatnonzero(~loss[:last])
        start = int(before[-1]) + 1 if len(before) else 1
        ids = np.asarray(rows.ids[first:end]).tolist()
        prompts.append(ids[:start])
        answers.append(ids[start : last + 1])
    return prompts, answers


def ends_of(answers: Sequence[Sequence[int]], tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the tokenizer's own, and the one that most answers of the rows end with."""
    last = [answer[-1] for answer in answers if answer]
    ends = {max(set(last), key=last.count)} if last else set()
    return ends | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Collection[int],
    *,
    most: int,
    temperature: float = 0.0,
    seed: int = 0,
    samples: int = 1,
) -> list[list[list[int]]]:
    """Answer every prompt so many times, in at most so many tokens; an answer that ended holds its end."""
    device = next(model.parameters()).device
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    found: list[list[list[int]]] = [[] for _ in prompts]
    pad = min(ends) if ends else 0
    options: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked), torch.no_grad():
        torch.manual_seed(seed)
        for at in range(0, len(order), PROMPTS_AT_ONCE):
            chosen = order[at : at + PROMPTS_AT_ONCE]
            width = max(len(prompts[n]) for n in chosen)
            ids = torch.full((len(chosen), width), pad, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, n in enumerate(chosen):
                ids[row, width - len(prompts[n]) :] = torch.tensor(list(prompts[n]))
                mask[row, width - len(prompts[n]) :] = 1
            written = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=most, pad_token_id=pad,
                eos_token_id=sorted(ends) or None, num_return_sequences=samples, use_cache=True, **options,
            )  # fmt: skip
            for row, answer in enumerate(written[:, width:].tolist()):
                stop = next((k + 1 for k, token in enumerate(answer) if token in ends), len(answer))
                found[chosen[row // samples]].append(answer[:stop])
    return found
