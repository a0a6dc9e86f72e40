"""From a mixture file alone to token rows in training order: sources are read again and refused where they changed.

Rows are drawn and ordered by `mixture.draws` and masked by `data.tokens`, as for the proxies and `apply`: there is no
second implementation. Legend: D domains, J capabilities, N rows of a domain, R rows of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from ideal_proxy.batching import BATCH_ROWS, Loss
from ideal_proxy.data import ChatTemplate, Row, TokenRows, read_rows, row_keys, source_fingerprint, tokenize_rows
from ideal_proxy.errors import UserError
from ideal_proxy.mixture import (
    MixtureFile,
    domain_order,
    draw,
    read_domain,
    reading_part,
    refuse_other_rows,
    refuse_without_rows,
    reserve_mask,
    resolve,
    search_verify_split,
    training_order,
)

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySetting:
    """How the proxies of the search saw the data; a scratch model is prepared in the same way."""

    size: str = "1M"  # of scratch proxies, a key of the size dial
    vocabulary: int = 4096  # tokens that the tokenizer was asked for
    context: int = 512  # longest row, tokens
    warm_fraction: float = 0.15  # share of every domain that is reserved for the warm start
    batch_rows: int = BATCH_ROWS  # rows of an optimiser step
    batch_tokens: int | None = None  # its tokens where it counts those
    loss: Loss = "token"  # over a step's supervised tokens, or its rows
    learning_rate: float | None = None  # peak rate of the proxies; None where the file does not say
    seed: int = 0  # of the search
    model: str | None = None  # folder or hub id of pretrained proxies; None for scratch ones
    gguf: str | None = None  # file of its quantised weights
    lora_rank: int | None = None  # rank of their low-rank updates; None where every weight was trained


def proxy_setting(mixture: MixtureFile) -> ProxySetting:
    """Read from a mixture file how its proxies were trained."""
    found: dict[str, Any] = {}
    for part in (mixture.template, mixture.provenance.get("proxy")):
        if isinstance(part, dict):
            found.update({key: value for key, value in part.items() if value is not None})
    known = {key: found[key] for key in ProxySetting.__dataclass_fields__ if key in found}
    if mixture.batch is not None:  # files of earlier versions name it with the proxies
        known |= {f"batch_{mixture.batch.unit}": mixture.batch.rows or mixture.batch.tokens}
    with reading_part("provenance.proxy"):
        return TypeAdapter(ProxySetting).validate_python({"seed": mixture.seed, "loss": mixture.loss, **known})


def read_domains(mixture: MixtureFile, folder: Path | None = None) -> list[list[Row]]:
    """Read every domain that has a volume, or had one in the base, and refuse rows that changed."""
    refuse_without_rows(mixture)
    return [read_domain(domain, resolve(domain.source, folder), mixture.key_note) for domain in mixture.domains]


def read_references(mixture: MixtureFile, folder: Path | None = None) -> list[list[Row]]:
    """Read the reference rows of every capability, and refuse rows that changed."""
    references = []
    for capability in mixture.capabilities:
        if not capability.source:
            raise UserError(
                f"capability {capability.name} names no reference rows in the mixture file; add its source or remove it"
            )
        rows = list(read_rows(resolve(capability.source, folder), format=capability.format, max_bad=-1))
        if capability.fingerprint:
            found = source_fingerprint(row_keys(rows))
            refuse_other_rows(
                found, capability.fingerprint, f"capability {capability.name}", capability.source, mixture.key_note
            )
        references.append(rows)
    return references


@dataclass(frozen=True, slots=True)
class Drawn:
    """The rows of one run in training order."""

    domain: Ints  # (R,) which domain each row is of
    row: Ints  # (R,) its index among that domain's token rows
    volumes: Ints  # (D,) rows drawn

    @property
    def order(self) -> tuple[Ints, Ints]:
        """Domain and row of each row in turn, as `proxy.train` takes them."""
        return self.domain, self.row


def draw_rows(
    names: Sequence[str],
    token_rows: Sequence[TokenRows],
    volumes: Sequence[int],
    seed: int,
    *,
    fraction: float = 1.0,
    exclude: float = 0.0,
) -> Drawn:
    """Draw volumes from the domains' permutations and put them in training order."""
    # With a fraction F below 1 each domain offers only the first F · N rows of its permutation, and F · v are
    # drawn, so that repeats stay those of the full-size run (the proxies' own scheme).
    if not 0 < fraction <= 1:
        raise UserError(f"the fraction is {fraction}; it must lie above 0 and at most at 1")
    parts = []
    drawn = []
    for name, rows, volume in zip(names, token_rows, volumes, strict=True):
        order = domain_order(seed, name, rows.keys)
        if exclude:
            order = order[~reserve_mask(rows.split_keys, exclude)[order]]
        if fraction < 1:
            order = order[: max(1, round(fraction * len(rows)))]
        count = round(fraction * int(volume))
        if count and not len(order):
            raise UserError(f"domain {name} has no row to train on; give it rows, or set its volume to 0")
        indices, passes = draw(order, count)
        parts.append((rows.keys, indices, passes))
        drawn.append(count)
    if not sum(drawn):
        raise UserError("the mixture draws no row at all; give one domain a volume, or raise --fraction")
    domain, row = training_order(seed, list(names), parts)
    return Drawn(domain, row, np.asarray(drawn, dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleData:
    """Everything a full-size run reads."""

    names: tuple[str, ...]  # D domain names
    domains: tuple[TokenRows, ...]  # D sets of token rows
    capabilities: tuple[str, ...]  # J names
    references: tuple[TokenRows, ...]  # J sets of reference rows
    verify: tuple[NDArray[np.bool_], ...]  # J masks (N_j,) of the rows that the search never saw


def tokenize_mixture(
    mixture: MixtureFile,
    template: ChatTemplate,
    context: int,
    domains: Sequence[Sequence[Row]],
    references: Sequence[Sequence[Row]],
    cache: Path | None = None,
) -> ScaleData:
    """Tokenise the sources with the model's template: the masks of `ideal_proxy.data.tokens`, no others."""
    tokens = [tokenize_rows(rows, template, context, cache) for rows in domains]
    for domain, rows in zip(mixture.domains, tokens, strict=True):
        if (domain.rows or domain.base_rows) and not len(rows):
            raise UserError(f"no row of domain {domain.name} keeps an answer at --context {context}; raise it")
    judged = [tokenize_rows(rows, template, context, cache) for rows in references]
    for capability, rows in zip(mixture.capabilities, judged, strict=True):
        if not len(rows):
            raise UserError(f"no reference row of {capability.name} keeps an answer at --context {context}; raise it")
    return ScaleData(
        names=tuple(domain.name for domain in mixture.domains),
        domains=tuple(tokens),
        capabilities=tuple(capability.name for capability in mixture.capabilities),
        references=tuple(judged),
        verify=tuple(~search_verify_split(rows.split_keys) for rows in judged),
    )
