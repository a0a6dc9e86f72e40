"""Response matrices of any causal LM, from a run file to tables and a proposed mixture.

The gradients refer to the run file's base mixture, and the model should have been fine-tuned on it. The proposal is
IDEAL's one step (Ming et al., ICLR 2026, arXiv 2505.12762): cheap, and not verified by training.

Legend: J capabilities, D domains.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig, range_of
from ideal_proxy.data import (
    LONGEST,
    ChatTemplate,
    Limit,
    TokenRows,
    choose_context,
    read_sources,
    row_keys,
    rows_by_name,
    source_fingerprint,
    tally_lines,
    tokenize_rows,
)
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.gradients.influence import InfluenceSettings, responses
from ideal_proxy.gradients.records import IDEAL_STEP, Floats, ResponseMatrix, one_step, plain_lists, unresolved
from ideal_proxy.mixture import (
    CapabilityResult,
    DomainVolume,
    MixtureFile,
    drawn_tokens,
    save_mixture,
    search_verify_split,
)
from ideal_proxy.provenance import provenance
from ideal_proxy.proxy import peak_memory
from ideal_proxy.store import atomic_write_json
from ideal_proxy.terminal import Reporter

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]

NOT_VERIFIED = "IDEAL's one step from gradients of one model; not verified by training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The run file's rows as the model reads them."""

    domains: dict[str, TokenRows]  # D sets of token rows, by name
    # J sets of reference rows, by capability: the search half only, the verify half stays unseen
    references: dict[str, TokenRows]
    available: Ints  # (D,) rows of each domain that can be trained on
    left_out: list[list[str]]  # of D domains: keys in hex of rows that the template refuses or that carry no loss
    base: Ints  # (D,) rows of each domain in the base mixture
    lower: Ints  # (D,) fewest rows the run file allows
    upper: Ints  # (D,) most rows it allows, repeats included
    fingerprints: tuple[list[str], list[str]]  # SHA-256 over the row keys, of D domains and J capabilities
    template: dict[str, Any]  # what the mixture file says of the template, with the context

    def drawn(self, rows: Ints, seed: int) -> tuple[Ints, Ints]:
        """Tokens of a mixture, of exactly the rows that would be drawn."""
        drawn = [drawn_tokens(seed, *entry, int(v)) for entry, v in zip(self.domains.items(), rows, strict=True)]
        tokens, supervised = np.array(drawn, dtype=np.int64).T
        return tokens, supervised


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """IDEAL's one step from the base mixture."""

    total: Floats  # (D,) A_i = Σ_j R_ji, M where R is not known
    # (D,) whether |A_i| exceeds two Σ_j se_ji, a bound that holds however the errors hang together
    resolved: NDArray[np.bool_]
    rows: Ints  # (D,) proposed rows, whole and within the run file's bounds
    active: tuple[str, ...]  # bounds that cut a step short


def encode_sources(
    config: SearchConfig, template: ChatTemplate, context: int | None, longest: int | None = None
) -> Sources:
    """Read and tokenise every source of a run file with a model's own template; without a context, the data's own."""
    parts = read_sources(config)
    for line in tally_lines(*parts):
        log.warning(line)
    domain_rows, reference_rows = rows_by_name(*parts)
    domains = {name: tokenize_rows(rows, template, context) for name, rows in domain_rows.items()}
    judged = {name: tokenize_rows(rows, template, context) for name, rows in reference_rows.items()}
    if context is None:
        bos, limit = template.tokenizer.bos_token_id, Limit(min(longest or LONGEST, LONGEST))
        every = [*domains.values(), *judged.values()]
        context = choose_context({str(n): rows for n, rows in enumerate(every)}, limit, bos).tokens
        domains, judged = ({n: rows.cut(context, bos) for n, rows in part.items()} for part in (domains, judged))
    references = {}
    for name in domains:
        if not len(domains[name]):
            raise UserError(f"domain {name} has no row with an answer; every row needs a non-empty answer")
    for name, tokens in judged.items():
        references[name] = tokens.select(np.flatnonzero(search_verify_split(tokens.split_keys)))
        if not len(references[name]):
            raise UserError(f"capability {name} has too few reference rows with an answer; give it at least 10")
    available = np.array([len(rows) for rows in domains.values()], dtype=np.int64)
    keys = [row_keys(rows) for rows in domain_rows.values()]
    lost = [np.delete(found, rows.source_index).tolist() for found, rows in zip(keys, domains.values(), strict=True)]
    most = config.constraints.max_repeat
    ranges = [
        range_of(
            entry, int(available[i]), most, config.base.epochs, len(lost[i]) + parts[0][entry.name].tally.all_left_out
        )
        for i, entry in enumerate(config.domains)
    ]
    base, lower, upper = np.array(ranges, dtype=np.int64).T
    return Sources(
        domains=domains,
        references=references,
        available=available,
        left_out=[[f"{key:016x}" for key in found] for found in lost],
        base=base,
        lower=lower,
        upper=upper,
        fingerprints=(
            [source_fingerprint(found) for found in keys],
            [source_fingerprint(row_keys(rows)) for rows in reference_rows.values()],
        ),
        template=template.to_dict() | {"context": context},
    )


def take_step(matrix: ResponseMatrix, sources: Sources, names: Sequence[str]) -> Step:
    """Propose IDEAL's one step from the base mixture, within the run file's bounds."""
    response, errors = _strongest(matrix)
    total = np.asarray(response.sum(0))
    wanted = np.rint(one_step(response, sources.base, IDEAL_STEP)).astype(np.int64)
    rows = np.clip(wanted, sources.lower, sources.upper)
    active = []
    for i, name in enumerate(names):
        if rows[i] != wanted[i]:
            low, high = int(sources.lower[i]), int(sources.upper[i])
            which = "pinned" if low == high else "at least" if rows[i] > wanted[i] else "at most"
            active.append(f"{which}: {name} {int(rows[i]):,} rows")
    return Step(total=total, resolved=~unresolved(total, errors.sum(0)), rows=rows, active=tuple(active))


def _strongest(matrix: ResponseMatrix) -> tuple[Floats, Floats]:
    """R with its errors where it is known, else M."""
    if matrix.R is None:
        return matrix.M, matrix.se
    return matrix.R, matrix.se if matrix.se_R is None else matrix.se_R


def read_tau(given: Sequence[str], capabilities: Sequence[str]) -> list[float] | None:
    """Read options of the form CAPABILITY=NATS."""
    found = {}
    for option in given:
        name, _, text = option.rpartition("=")
        try:
            found[name] = float(text)
        except ValueError:
            name = ""
        if name not in capabilities or not math.isfinite(found[name]):
            raise UsageError(f"--tau {option!r} must be CAPABILITY=NUMBER, of {', '.join(capabilities)}")
    missing = [name for name in capabilities if name not in found]
    if found and missing:
        raise UsageError(f"--tau names no {missing[0]!r}; give it for every capability, or for none")
    return [found[name] for name in capabilities] if found else None


def open_folder(folder: Path) -> Path:
    """Make the folder for the results, before any work."""
    if (folder / "mixture.json").exists() and not (folder / "influence.json").exists():
        raise UserError(f"{folder} holds another mixture.json, which would be lost; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    return folder


def estimate(
    config: SearchConfig,
    model: Any,
    template: ChatTemplate,
    folder: Path,
    reporter: Reporter,
    *,
    name: str,
    method: str = "implicit",
    context: int | None = None,
    rows: int | None = None,
    tau: Sequence[float] | None = None,
    bf16: bool = False,
    on_disk: bool = False,
) -> dict[str, Any]:
    """Estimate a model's responses to the base mixture's domains and write them with IDEAL's one step."""
    # The model is on its device and was fine-tuned on the base mixture or near it; `rows` is the most of a source whose
    # gradients are taken (the curvature takes as many a domain, at most its default), `tau` (J,) fills in R.
    longest = getattr(model.config, "max_position_embeddings", None)
    sources = encode_sources(config, template, context or config.proxy.context, longest)
    plain = InfluenceSettings()
    taken = plain.gradient_rows if rows is None else rows
    factor_rows = plain.factor_rows if rows is None else min(plain.factor_rows, rows * len(sources.domains))
    parameters = sum(p.numel() for p in model.parameters())
    reporter.note(
        f"{parameters / 1e6:.3g}M parameters, {method} responses of {len(sources.references)} capabilities to "
        f"{len(sources.domains)} domains, at most {taken} rows of each"
    )
    supervised = sources.drawn(sources.base, config.seed)[1]
    with tempfile.TemporaryDirectory(prefix=".influence-", dir=folder) as scratch:
        matrix = responses(
            model,
            sources.domains,
            sources.references,
            sources.base,
            method=method,
            settings=InfluenceSettings(
                gradient_rows=taken,
                factor_rows=factor_rows,
                seed=config.seed,
                folder=Path(scratch) if on_disk else None,
                autocast=torch.bfloat16 if bf16 else None,
                loss=config.loss,
            ),
            supervised_tokens=supervised,
        )
    matrix = matrix if tau is None else matrix.with_tau(tau)
    step = take_step(matrix, sources, config.domain_names)
    result = _result(config, sources, matrix, step, model=name, parameters=parameters, rows=taken)
    matrix.save(folder / "responses.npz")
    save_mixture(folder / "mixture.json", _mixture(config, sources, step, result))
    atomic_write_json(folder / "influence.json", result)
    return result


def _result(
    config: SearchConfig,
    sources: Sources,
    matrix: ResponseMatrix,
    step: Step,
    *,
    model: str,
    parameters: int,
    rows: int | None,
) -> dict[str, Any]:
    tokens = [int(sources.drawn(volumes, config.seed)[0].sum()) for volumes in (sources.base, step.rows)]
    errors = matrix.se if matrix.se_R is None else matrix.se_R
    return {
        "name": config.name,
        "model": model,
        "parameters": parameters,
        "method": matrix.method,
        "rows": rows,
        "context": sources.template["context"],
        "domains": list(matrix.domains),
        "capabilities": list(matrix.capabilities),
        "M": plain_lists(matrix.M),
        "se": plain_lists(matrix.se),
        "unresolved": unresolved(matrix.M, matrix.se).tolist(),
        "R": plain_lists(matrix.R),
        "se_R": None if matrix.R is None else plain_lists(errors),
        "unresolved_R": None if matrix.R is None else unresolved(matrix.R, errors).tolist(),
        "tau": plain_lists(matrix.tau),
        "q": plain_lists(matrix.q),
        "w": plain_lists(matrix.w),
        "proposal": {
            "rule": "v_i (1 - 0.15 A_i / max|A|), A_i the sum of column i",
            "from": "M" if matrix.R is None else "R",
            "verified": False,
            "A": plain_lists(step.total),
            "A_resolved": step.resolved.tolist(),
            "base_rows": sources.base.tolist(),
            "rows": step.rows.tolist(),
            "available": sources.available.tolist(),
            "active": list(step.active),
            "base_tokens": tokens[0],
            "tokens": tokens[1],
        },
        "cost": {
            "gradient_tokens": matrix.cost.gradient_tokens,
            "base_trainings": matrix.cost.runs(tokens[0]),
            "seconds": matrix.cost.seconds,
            "peak_memory_bytes": peak_memory(),
        },
    }


def _mixture(config: SearchConfig, sources: Sources, step: Step, result: Mapping[str, Any]) -> MixtureFile:
    tokens, supervised = sources.drawn(step.rows, config.seed)
    fingerprints, judged = sources.fingerprints
    return MixtureFile.of(
        config,
        [
            DomainVolume(
                name=domain.name,
                source=domain.path,
                format=domain.format,
                fingerprint=fingerprints[i],
                available=int(sources.available[i]),
                left_out=sources.left_out[i],
                rows=int(step.rows[i]),
                tokens=int(tokens[i]),
                supervised_tokens=int(supervised[i]),
                base_rows=int(sources.base[i]),
            )
            for i, domain in enumerate(config.domains)
        ],
        capabilities=[
            CapabilityResult(name=entry.name, source=entry.path, format=entry.format, fingerprint=judged[j])
            for j, entry in enumerate(config.capabilities)
        ],
        constraints_active=list(step.active),
        provenance=provenance()
        | {
            "verified": NOT_VERIFIED,
            "influence": {key: result[key] for key in ("model", "method", "rows", "context", "cost")}
            | {"largest_change": IDEAL_STEP, "from": result["proposal"]["from"]},
        },
        template=sources.template,
    )
