"""The generation guard: do answers of the trained model get worse in a way that a loss does not show?

Before a full-size `improves`, base and proposal answer the same prompts. Of each answer four things are looked at:
its length, how much of it repeats, whether it never ends, and whether a thought is left open. What rises surely, by
paired tests over prompts at 5 % for all of them together (Holm), is told beside the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ideal_proxy.data import ChatTemplate, TokenRows
from ideal_proxy.proxy import ends_of, generate, prompts_of

PROMPTS = 50  # of each capability
LEVEL = 0.05
LEAST_TOKENS, MOST_TOKENS, ROOM = 32, 1024, 3  # of an answer: so many times the longest of most reference answers
GRAM = 4  # tokens of a piece that may repeat
THINKING = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))
MEASURES = ("length", "repetition", "never ends", "thought left open")

Array = NDArray[np.float64]


def guard(
    base: Path,
    proposal: Path,
    references: Sequence[TokenRows],
    names: Sequence[str],
    template: ChatTemplate,
    device: str,
) -> dict[str, Any]:
    """Let two trained models answer, and compare."""
    prompts, longest, ends = _prompts(references, template)
    answers = [_answers(place, prompts, ends, longest, device) for place in (base, proposal)]
    entries: list[dict[str, Any]] = []
    for j, name in enumerate(names):
        sides = [measures(found[j], ends, longest[j], template.tokenizer) for found in answers]
        for m, measure in enumerate(MEASURES):
            entries.append({
                "capability": name, "measure": measure, "base": float(sides[0][:, m].mean()),
                "proposal": float(sides[1][:, m].mean()), "p": rise(sides[0][:, m], sides[1][:, m]),
            })  # fmt: skip
    for entry, sure in zip(entries, _holm([entry["p"] for entry in entries]), strict=True):
        entry["rises"] = sure
    return {
        "prompts": {name: len(part) for name, part in zip(names, prompts, strict=True)},
        "most_tokens": dict(zip(names, longest, strict=True)), "measures": entries, "sentence": told(entries),
    }  # fmt: skip


def skipped(why: str) -> dict[str, Any]:
    """Say that nothing was looked at, and why."""
    return {"prompts": {}, "measures": [], "sentence": f"not looked at: {why}"}


def told(entries: Sequence[dict[str, Any]]) -> str:
    """Say in one sentence what rises."""
    rising = [entry for entry in entries if entry["rises"]]
    if not rising:
        return "base's and the proposal's end, repeat and think alike, as far as 50 a capability can tell"
    parts = []
    for entry in rising:
        numbers = (entry["base"], entry["proposal"])
        whole = entry["measure"] == "length"
        shown = "{:.0f} to {:.0f} tokens".format(*numbers) if whole else "{:.0%} to {:.0%}".format(*numbers)
        parts.append(f"{entry['capability']}: {entry['measure']} {shown}")
    return "look at the answers before you adopt it, what surely rises is " + "; ".join(parts)


def measures(answers: Sequence[Sequence[int]], ends: set[int], most: int, tokenizer: Any) -> Array:
    """Length, share of pieces that were there before, never ends, thought left open; (answers, 4)."""
    found = np.zeros((len(answers), len(MEASURES)))
    for n, answer in enumerate(answers):
        pieces = [tuple(answer[k : k + GRAM]) for k in range(len(answer) - GRAM + 1)]
        text = tokenizer.decode(list(answer), skip_special_tokens=False)
        found[n] = (
            len(answer),
            1 - len(set(pieces)) / len(pieces) if pieces else 0.0,
            len(answer) >= most and (not answer or answer[-1] not in ends),
            any(text.count(opens) > text.count(closes) for opens, closes in THINKING),
        )
    return found


def rise(base: Array, proposal: Array) -> float:
    """One-sided p-value that a measure rises over pairs: signs for what is there or not, else signed ranks."""
    change = proposal - base
    moved = change[change != 0]
    if not len(moved):
        return 1.0
    if set(np.unique(np.concatenate([base, proposal]))) <= {0.0, 1.0}:
        return float(stats.binomtest(int((moved > 0).sum()), len(moved), 0.5, alternative="greater").pvalue)
    return float(stats.wilcoxon(moved, alternative="greater", method="approx", correction=True).pvalue)


def _holm(values: Sequence[float]) -> list[bool]:
    """Which p-values are significant, all together at the level."""
    sure = [False] * len(values)
    for rank, n in enumerate(np.argsort(values, kind="stable")):
        if values[n] > LEVEL / (len(values) - rank):
            break
        sure[n] = True
    return sure


def _prompts(
    references: Sequence[TokenRows], template: ChatTemplate
) -> tuple[list[list[list[int]]], list[int], set[int]]:
    """Take prompts of the reference rows, spread by their keys; with room for an answer, and what ends one."""
    prompts, longest, ends = [], [], set[int]()
    for rows in references:
        chosen = rows.select(np.argsort(rows.keys, kind="stable")[:PROMPTS])
        asked, answers = prompts_of(chosen)
        ends |= ends_of(answers, template.tokenizer)
        usual = float(np.percentile([len(answer) for answer in answers], 95))
        prompts.append(asked)
        longest.append(int(np.clip(ROOM * usual, LEAST_TOKENS, MOST_TOKENS)))
    return prompts, longest, ends


def _answers(
    place: Path, prompts: Sequence[Sequence[Sequence[int]]], ends: set[int], longest: Sequence[int], device: str
) -> list[list[list[int]]]:
    import torch
    from transformers import AutoModelForCausalLM

    from ideal_proxy.proxy import quiet_libraries

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with quiet_libraries():
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(place), dtype=dtype, local_files_only=True)
    model = loaded.to(device).eval()
    return [
        [answer for (answer,) in generate(model, part, ends, most=most)]
        for part, most in zip(prompts, longest, strict=True)
    ]
