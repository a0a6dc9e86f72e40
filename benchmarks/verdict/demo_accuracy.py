"""The metric of `demo_accuracy.yaml`: share of short answers of the demo that a proxy gives exactly, word for word.

python cli.py search benchmarks/verdict/demo_accuracy.yaml --out runs/demo_accuracy
python benchmarks/verdict/record.py runs/demo_accuracy
"""

from __future__ import annotations

import os
from typing import Any

import torch

from ideal_proxy.data.messages import prompt_groups
from ideal_proxy.data.rows import read_rows, row_keys
from ideal_proxy.mixture.draws import search_verify_split

ITEMS = 400  # half of them for the search, half for the check
LONGEST = 20  # tokens of an answer


def exact_match(model: Any, tokenizer: Any, split: str) -> float:
    """Generate greedily and compare; the halves are those of the reference loss, so the check's items are unseen.

    Args:
        model: the proxy.
        tokenizer: its own.
        split: `search` or `verify`.

    Returns:
        float: share of the items, 0 to 1.
    """
    rows = list(read_rows(f"demo:{os.environ['IDEAL_PROXY_CAPABILITY']}?rows={ITEMS}&split=reference"))
    search = search_verify_split(prompt_groups(rows, row_keys(rows)))
    rows = [row for row, mine in zip(rows, search if split == "search" else ~search, strict=True) if mine]
    tokenizer.padding_side = "left"
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": row.messages[0].content}], tokenize=False,
                                      add_generation_prompt=True)
        for row in rows
    ]  # fmt: skip
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    torch.manual_seed(0)
    made = model.generate(
        input_ids=batch["input_ids"].to(model.device), attention_mask=batch["attention_mask"].to(model.device),
        max_new_tokens=LONGEST, do_sample=False,
    )  # fmt: skip
    answers = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = sum(answer.strip() == row.messages[-1].content.strip() for answer, row in zip(answers, rows, strict=True))
    return right / len(rows)
