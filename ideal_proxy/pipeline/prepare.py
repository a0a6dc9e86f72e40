"""From the run file to numbers and token arrays in the run directory: the first stage of a search.

What it writes (`prepared/`) is everything that workers read; it is made once and never remade on resume.

Legend: D domains, J capabilities.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig, range_of
from ideal_proxy.data import (
    CUT_SHARE,
    ChatTemplate,
    Context,
    ReadSource,
    Row,
    TokenRows,
    TooManyRefusedError,
    bad_row,
    chat_record,
    domain_tokenizer,
    find_duplicates,
    format_text,
    make_template,
    read_sources,
    row_keys,
    rows_by_name,
    source_fingerprint,
)
from ideal_proxy.domains import Domains
from ideal_proxy.errors import UserError
from ideal_proxy.mixture import keep_some, reserve_mask, search_verify_split
from ideal_proxy.pipeline.encoding import LeftOut, encode, left_out, pretrained_source
from ideal_proxy.pipeline.facts import CapabilityFacts, DomainFacts
from ideal_proxy.pipeline.findings import Finding, duplicate_findings, few_references_text, tallied, tell, told
from ideal_proxy.pipeline.row_record import Heritage
from ideal_proxy.pipeline.unchanged import Origin, refuse_changed_sources, stamp
from ideal_proxy.sections import DomainConfig, size_name
from ideal_proxy.store import (
    atomic_write_json,
    is_complete,
    is_whole,
    json_bytes,
    mark_complete,
    read_json,
    save_pretrained,
)
from ideal_proxy.swarm import save_lines
from ideal_proxy.terminal import Reporter

if TYPE_CHECKING:
    from ideal_proxy.proxy import Pretrained

FEW_ROWS = 50  # of a domain; a proxy then sees some of them once or twice
BAD_ROWS = "bad_rows.jsonl"  # of the run directory: rows that cannot be read, with place and reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The search's problem in numbers, and where its token arrays lie."""

    folder: Path  # `prepared/` of the run directory
    facts: tuple[DomainFacts, ...]  # of the D domains
    capabilities: tuple[CapabilityFacts, ...]  # J capabilities
    health: dict[str, Any]  # duplicates and leaks, as counts
    vocabulary: int  # number of tokens of the tokenizer
    template: dict[str, Any]  # what the mixture file says of the template
    context: Context  # the most tokens of a row, decided once
    # of a pretrained proxy its `fingerprint` and `parameters`; empty for a scratch proxy
    base_model: dict[str, Any] = field(default_factory=dict)
    domains: Domains = field(init=False)  # the domains that every mixture of the search is over, in full-size rows

    def __post_init__(self) -> None:
        domains = Domains(
            names=tuple(facts.name for facts in self.facts),
            base=self.column("base"),
            available=self.column("available"),
            tokens_per_row=self.column("tokens_per_row"),
        )
        object.__setattr__(self, "domains", domains)

    @property
    def kept_base(self) -> Path:
        """Where a pretrained proxy's weights are kept, float32."""
        return self.folder / str(self.base_model.get("folder", "model"))

    def of_size(self, size: str) -> Prepared:
        """Give it for one of a ladder's sizes below the last: a pretrained one is another model, of the same tokens."""
        return replace(self, base_model=self.base_model["lower"][size]) if self.base_model else self

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one number of every domain."""
        return np.array([getattr(domain, name) for domain in self.facts], dtype=float)

    @property
    def capability_names(self) -> list[str]:
        """J names."""
        return [capability.name for capability in self.capabilities]

    def domain_rows(self, index: int) -> TokenRows:
        """Load a domain's token arrays, memory-mapped."""
        return TokenRows.load(self.folder / f"domain-{index}")

    @property
    def sources(self) -> list[Origin]:
        """Where all rows came from, domains first."""
        entries: list[DomainFacts | CapabilityFacts] = [*self.facts, *self.capabilities]
        return [Origin(entry.source, entry.format, entry.fingerprint) for entry in entries]

    def reference_rows(self, index: int, half: str) -> TokenRows:
        """Load a capability's token arrays, the `search` or the `verify` half."""
        return TokenRows.load(self.folder / f"{half}-{index}")


def prepare(config: SearchConfig, folder: Path, reporter: Reporter, heritage: Heritage | None = None) -> Prepared:
    """Read, tokenise and split every source, once; of a search that reuses another with its tokenizer and split."""
    if is_whole(folder, reporter.note):
        prepared = load_prepared(folder)
        refuse_changed_sources(prepared.sources, prepared.health["stamps"], folder.parent)
        return prepared
    # What is wrong with the model is told before any row is read.
    tokenizer = None if config.proxy.model is None else proxy_tokenizer(config, [])
    _refuse_other_tokens(config, tokenizer)
    stamps = {entry.path: stamp(entry.path) for entry in (*config.domains, *config.capabilities)}
    domains, references = read_sources(config, bad_rows=folder.parent / BAD_ROWS)
    parts = (("domain", domains), ("reference rows of", references))
    found = [(f"{which} {name}", source) for which, part in parts for name, source in part.items()]
    tell([Finding(name, *said) for name, source in found for said in tallied(source.tally.lines())], reporter)
    base_model = _keep_bases(config, folder, reporter)
    if tokenizer is None and heritage is not None:
        tokenizer = load_template(heritage.folder / "tokenizer").tokenizer
    if tokenizer is None:
        tokenizer = proxy_tokenizer(config, [source.rows for source in domains.values()])
    save_pretrained(tokenizer, folder / "tokenizer")
    template = load_template(folder / "tokenizer")
    whose = f"byte-level BPE tokens {'of the run that is reused' if heritage else 'trained on the domains'}"
    whose = "tokens of the model" if config.proxy.model else whose
    written = "the plain template" if template.plain else "its own chat template"
    reporter.note(f"tokenizer: {len(tokenizer):,} {whose}, {written}")
    try:
        both = rows_by_name(domains, references)
        encoded = encode(config, template, *both, given_by="the run that is reused" if heritage else "the run file")
    except TooManyRefusedError as error:
        every = [(entry.path, domains[entry.name]) for entry in config.domains]
        every += [(entry.path, references[entry.name]) for entry in config.capabilities]
        place_of = {row.where: path for path, source in every for row in source.rows}
        bad_rows = folder.parent / BAD_ROWS
        _write_bad_rows([(place_of[where], where, why, what) for where, why, what in error.rows], bad_rows)
        raise UserError(f"{error}; all of them stand in {bad_rows}") from error
    reporter.note(f"context: {encoded.context.tokens:,} tokens, {encoded.context.reason}")
    domain_facts, findings = [], []
    for index, entry in enumerate(config.domains):
        rows = domains[entry.name].rows
        reporter.note(f"domain {entry.name}: {len(rows):,} rows, {format_text(domains[entry.name].format)}")
        tokens = encoded.domains[entry.name]
        _refuse_empty(tokens, f"domain {entry.name}", entry.path)
        if tokens.cut_share > CUT_SHARE and not config.proxy.allow_truncation:
            raise UserError(f"domain {entry.name}: {cut_text(tokens, encoded.context)}")
        if tokens.truncated:
            reporter.note(f"domain {entry.name}: {cut_rows_text(tokens)}")
        findings += [Finding(f"domain {entry.name}", *said) for said in told(tokens.told)]
        tokens.save(folder / f"domain-{index}")
        if config.proxy.command is not None:
            save_lines(folder / f"domain-{index}.jsonl", _lines(rows, tokens))
        lost = _tell_left_out(left_out(rows, tokens, template), entry.path, folder.parent / BAD_ROWS)
        if len(tokens) < FEW_ROWS:
            findings.append(Finding(f"domain {entry.name}", few_rows_text(len(tokens)), True))
        domain_facts.append(_domain_facts(entry, domains[entry.name], tokens, lost, config, heritage))
    capability_facts = []
    for index, capability in enumerate(config.capabilities):
        rows = references[capability.name].rows
        tokens = encoded.references[capability.name]
        _refuse_empty(tokens, f"capability {capability.name}", capability.path)
        findings += [Finding(f"reference rows of {capability.name}", *said) for said in told(tokens.told)]
        _tell_left_out(left_out(rows, tokens, template), capability.path, folder.parent / BAD_ROWS)
        search = search_verify_split(tokens.split_keys)
        if heritage is not None:
            search = heritage.search_rows(tokens.split_keys, search)
        read = search
        if (most := config.swarm.judge_rows) is not None:  # first what earlier runs have read, who may lack the others
            known = search & np.isin(tokens.split_keys, () if heritage is None else heritage.search)
            read = keep_some(tokens.keys, known, most)
            read |= keep_some(tokens.keys, search & ~known, most - int(read.sum()))
        halves = {"search": tokens.select(np.flatnonzero(read)), "verify": tokens.select(np.flatnonzero(~search))}
        for half, part in halves.items():
            if len(part) == 0:
                raise UserError(f"capability {capability.name} has too few reference rows to split; give it at least 2")
            part.save(folder / f"{half}-{index}")
            if config.proxy.command is not None:
                save_lines(folder / f"{half}-{index}.jsonl", _lines(rows, part))
        capability_facts.append(
            CapabilityFacts(
                name=capability.name,
                source=capability.path,
                format=capability.format,
                fingerprint=source_fingerprint(row_keys(rows)),
                rows=len(tokens),
                search_rows=len(halves["search"]),
                verify_rows=len(halves["verify"]),
                supervised_tokens=int(tokens.supervised_tokens.sum()),
                truncated=tokens.truncated,
            )
        )
    duplicates = duplicate_findings(find_duplicates(*rows_by_name(domains, references)))
    few = few_references_text({facts.name: facts.verify_rows for facts in capability_facts})
    findings += [*duplicates, *([Finding("", few, True)] if few else [])]
    tell(findings, reporter)
    prepared = Prepared(
        folder=folder,
        facts=tuple(domain_facts),
        capabilities=tuple(capability_facts),
        health={
            "duplicates": list(map(str, duplicates)),
            "leaks": [str(found) for found in duplicates if found.act],
            "few": [few] if few else [],
            "left_out": [f"{name}: {line}" for name, source in found for line in source.tally.lost_lines()],
            "stamps": stamps,
        },
        vocabulary=len(tokenizer),
        template=template.to_dict(),
        context=encoded.context,
        base_model=base_model,
    )
    atomic_write_json(folder / "facts.json", _as_json(prepared), seal=True)
    mark_complete(folder)
    return prepared


def _lines(rows: Sequence[Row], tokens: TokenRows) -> list[bytes]:
    """Write the rows behind token rows as lines of JSON, for a trainer of the user's own."""
    records = (chat_record(row.messages, row.tools, row.settings) for row in map(rows.__getitem__, tokens.source_index))
    return [json_bytes(record) + b"\n" for record in records]


def cut_text(tokens: TokenRows, context: Context) -> str:
    """Say that cutting removes too much of what is trained on, and what to do."""
    return (
        f"cutting to proxy.context: {context.tokens} removes {tokens.cut_share:.0%} of its supervised tokens; "
        "raise proxy.context, or set proxy.allow_truncation: true"
    )


def few_rows_text(rows: int) -> str:
    """Say that a domain has too few rows to learn its effect from."""
    return (
        f"{rows:,} row{'' if rows == 1 else 's'} to train on; with fewer than {FEW_ROWS} "
        "its effect can hardly be measured: add rows, or join it with a domain of its kind"
    )


def cut_rows_text(tokens: TokenRows) -> str:
    """Say how many rows were cut, and what they lost."""
    answers = f", {tokens.answers_cut:,} also of the answer" if tokens.answers_cut else ""
    return f"{tokens.truncated:,} of {len(tokens):,} rows cut, prompt from the left{answers}"


def proxy_tokenizer(config: SearchConfig, domains: Iterable[Sequence[Row]]) -> Any:
    """Return the proxies' tokenizer: a pretrained model's own, or one trained on the domains."""
    if config.proxy.model is None:
        assert config.proxy.vocabulary is not None
        return domain_tokenizer(domains, config.proxy.vocabulary)
    from ideal_proxy.proxy import load_tokenizer

    return load_tokenizer(pretrained_source(config))


def load_template(folder: Path) -> ChatTemplate:
    """Load a saved tokenizer with its template."""
    from transformers import AutoTokenizer

    return make_template(AutoTokenizer.from_pretrained(str(folder), local_files_only=True))


def _refuse_other_tokens(config: SearchConfig, tokenizer: Any) -> None:
    """Refuse a ladder of pretrained models that do not share a tokenizer: all are trained on the same tokens."""
    if config.proxy.model is None:
        return
    from ideal_proxy.proxy import load_tokenizer

    for size in config.swarm.sizes[:-1]:
        if load_tokenizer(pretrained_source(config, size)).get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"{size} reads other tokens than {config.proxy.model}; a ladder is of models of one family, which "
                "share a tokenizer"
            )


def _keep_bases(config: SearchConfig, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Keep the weights of a pretrained proxy, and of those of a ladder's sizes below it."""
    if config.proxy.model is None:
        return {}
    lower = {}
    for size in config.swarm.sizes[:-1]:
        source, name = pretrained_source(config, size), f"model-{size_name(size)}"
        lower[size] = {**_keep_base(config, source, folder / name, reporter), "folder": name}
    own = _keep_base(config, pretrained_source(config), folder / "model", reporter)
    counts = [(size, kept["parameters"]) for size, kept in lower.items()] + [(config.proxy.model, own["parameters"])]
    for (before, fewer), (size, more) in itertools.pairwise(counts):
        if fewer >= more:
            raise UserError(
                f"swarm.sizes goes from {before} ({fewer / 1e6:.4g}M parameters) to {size} ({more / 1e6:.4g}M); name "
                "the smallest model first"
            )
    return own | ({"lower": lower} if lower else {})


def _keep_base(config: SearchConfig, source: Pretrained, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Load a pretrained proxy once and keep its weights in the run directory."""
    from ideal_proxy.proxy import keep_base, load_causal_lm

    model = load_causal_lm(source, context=config.proxy.context or 1, packed=False)
    parameters = sum(p.numel() for p in model.parameters())
    fingerprint = keep_base(model, source, folder)
    reporter.note(f"proxy: {source.name}, {parameters / 1e6:.4g}M parameters, weights {fingerprint[:12]}…")
    return {"fingerprint": fingerprint, "parameters": parameters}


def _tell_left_out(found: Sequence[LeftOut], source: str, bad_rows: Path) -> list[str]:
    """Add rows that the template refuses to the bad rows of a run, and give their keys in hex."""
    _write_bad_rows([(source, f.row.where, f.reason, f.message) for f in found], bad_rows)
    return [f"{f.row.key:016x}" for f in found]


def _write_bad_rows(rows: Sequence[tuple[str, str, str, str]], bad_rows: Path) -> None:
    """Add rows to the bad rows of a run: source, place, reason and what is wrong of each."""
    if rows:
        with open(bad_rows, "a", encoding="utf-8") as file:
            file.writelines(bad_row(*row) + "\n" for row in rows)


def _domain_facts(
    entry: DomainConfig,
    source: ReadSource,
    tokens: TokenRows,
    lost: Sequence[str],
    config: SearchConfig,
    heritage: Heritage | None,
) -> DomainFacts:
    """Resolve a domain's base and bounds against the rows it has to train on."""
    available, rows = len(tokens), source.rows
    fewer = len(lost) + source.tally.all_left_out
    base, lower, upper = range_of(entry, available, config.constraints.max_repeat, config.base.epochs, fewer)
    reserved = int(reserved_rows(config, tokens, heritage).sum())
    if config.proxy.warm_fraction and not reserved and heritage is None:
        raise UserError(
            f"domain {entry.name} has no two different rows, and the warm start takes one of them; "
            "give it more rows, or take it out"
        )
    return DomainFacts(
        name=entry.name,
        source=entry.path,
        format=entry.format,
        fingerprint=source_fingerprint(row_keys(rows)),
        available=available,
        left_out=list(lost),
        base=base,
        lower=lower,
        upper=upper,
        tokens_per_row=float(tokens.lengths.mean()),
        supervised_per_row=float(tokens.supervised_tokens.mean()),
        reserved=reserved,
        truncated=tokens.truncated,
        dropped=tokens.dropped,
        longest=int(tokens.lengths.max()),
    )


def reserved_rows(config: SearchConfig, tokens: TokenRows, heritage: Heritage | None) -> NDArray[np.bool_]:
    """Mark the rows of a domain that no mixture draws: those of the warm start, also of one that was made before."""
    if heritage is not None:
        return np.isin(tokens.keys, heritage.reserved)
    return reserve_mask(tokens.split_keys, config.proxy.warm_fraction or 0.0)


def _refuse_empty(tokens: TokenRows, what: str, source: str) -> None:
    if len(tokens) == 0 and tokens.dropped:
        raise UserError(
            f"{what}: no turn of its {tokens.dropped:,} rows in {source} carries loss (weight 0, or no answer of the "
            "assistant); give rows with an answer to train on, or take it out"
        )
    if len(tokens) == 0:
        raise UserError(f"{what} has no row with an answer in {source}; every row needs a non-empty answer")


def still_true(run: Path) -> bool:
    """Whether what was prepared in a run directory, if anything, is of the data as it is now."""
    if not is_complete(run / "prepared"):
        return True
    try:
        prepared = load_prepared(run / "prepared")
        refuse_changed_sources(prepared.sources, prepared.health["stamps"], run)
    except UserError:
        return False
    return True


def _as_json(prepared: Prepared) -> dict[str, Any]:
    value = asdict(prepared)
    del value["folder"]
    return value | {"domains": value.pop("facts")}  # `Domains` are made of these


def load_prepared(folder: Path) -> Prepared:
    """Read what an earlier command prepared."""
    value = read_json(folder / "facts.json")
    return Prepared(**value | {
        "folder": folder,
        "facts": tuple(DomainFacts(**entry) for entry in value.pop("domains")),
        "capabilities": tuple(CapabilityFacts(**entry) for entry in value["capabilities"]),
        "context": Context(**value["context"]),
    })  # fmt: skip
