"""Rows of every source as tokens, and how many tokens a row may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil

from ideal_proxy.config import SearchConfig
from ideal_proxy.data import (
    ChatTemplate,
    Context,
    Limit,
    RefusedRowError,
    Row,
    TokenRows,
    choose_context,
    tokenize_rows,
)
from ideal_proxy.proxy import Products

if TYPE_CHECKING:
    from ideal_proxy.proxy import Pretrained

NO_LOSS = "no token of it carries loss"
MEMORY_SHARE = 0.5  # of this machine's, for the weights and activations of one worker


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token rows of every domain and capability, cut to one context."""

    context: Context
    domains: dict[str, TokenRows]
    references: dict[str, TokenRows]


def encode(
    config: SearchConfig,
    template: ChatTemplate,
    domains: Mapping[str, Sequence[Row]],
    references: Mapping[str, Sequence[Row]],
    *,
    given_by: str = "the run file",
) -> Encoded:
    """Tokenise every source and cut its rows to the context given, or to the one that the data needs."""
    given = config.proxy.context
    parts = [
        {name: tokenize_rows(rows, template, given) for name, rows in part.items()} for part in (domains, references)
    ]
    if given is not None:
        return Encoded(Context(given, f"by {given_by}"), *parts)
    bos = template.tokenizer.bos_token_id
    together = {f"{kind}{name}": rows for kind, part in zip(("domain ", "reference rows of "), parts, strict=True)
                for name, rows in part.items()}  # fmt: skip
    context = choose_context(together, row_limit(config), bos)
    return Encoded(context, *({name: rows.cut(context.tokens, bos) for name, rows in part.items()} for part in parts))


class LeftOut(NamedTuple):
    """A row that the proxies cannot train on, and why."""

    row: Row
    reason: str
    message: str


def left_out(rows: Sequence[Row], tokens: TokenRows, template: ChatTemplate) -> list[LeftOut]:
    """Find the rows of a source that are not among its tokens: the template refuses them, or none carries loss."""
    missing = np.ones(len(rows), dtype=np.bool_)
    missing[tokens.source_index] = False
    found = []
    for n in np.flatnonzero(missing).tolist():
        try:
            template.render_row(rows[n])
            found.append(LeftOut(rows[n], NO_LOSS, f"{rows[n].where}: {NO_LOSS}"))
        except RefusedRowError as error:
            found.append(LeftOut(rows[n], error.reason, f"{rows[n].where}: {error}"))
    return found


def row_limit(config: SearchConfig) -> Limit:
    """Say how long a row the proxies read, and this machine's memory takes."""
    from ideal_proxy.proxy import best_device, row_that_fits, shape_of

    proxy, limits = config.proxy, [Limit()]
    if proxy.model is None:
        assert proxy.vocabulary is not None
        parameters, products = scratch_products(proxy.size or "1M", proxy.vocabulary)
    else:
        for model in (*config.swarm.sizes[:-1], proxy.model):  # the last one's memory counts: it is the largest
            source = pretrained_source(config, model)
            reads, parameters, products = shape_of(source, lora=proxy.lora_rank is not None)
            if reads is not None:
                limits.append(Limit(reads, f"{model} reads no more"))
    memory = float(psutil.virtual_memory().total)
    if (best_device() if proxy.device == "auto" else proxy.device).startswith("cuda"):
        import torch

        memory = float(torch.cuda.get_device_properties(0).total_memory)
    fits = max(row_that_fits(products, parameters, MEMORY_SHARE * memory) // 64 * 64, 64)
    limits.append(Limit(fits, f"half of the memory here ({memory / 2**30:.0f} GiB) takes no more"))
    return min(limits, key=lambda limit: limit.tokens)


def scratch_products(size: str, vocabulary: int) -> tuple[int, Products]:
    """Count a scratch proxy without building it."""
    from ideal_proxy.proxy import proxy_shape

    shape = proxy_shape(size, vocabulary)
    layers = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.hidden)
    return shape.parameters, Products(
        trained=layers, frozen=0, head=vocabulary * shape.width, head_trained=True,
        attention=shape.layers * shape.width,
    )  # fmt: skip


def pretrained_source(config: SearchConfig, model: str | None = None) -> Pretrained:
    """Say where a pretrained proxy comes from: the run file's own, or one of a ladder's below it."""
    from ideal_proxy.proxy import Pretrained

    proxy = config.proxy
    assert proxy.model is not None
    if model not in {None, proxy.model}:
        return Pretrained(name=str(model), trust_remote_code=proxy.trust_remote_code)
    return Pretrained(
        name=proxy.model, gguf=proxy.gguf, revision=proxy.revision, trust_remote_code=proxy.trust_remote_code
    )
