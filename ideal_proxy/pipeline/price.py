"""`ideal-proxy price`: what a set is worth before it is in any mixture, from gradients of stored proxies or from runs.

Gradients have no scale of their own, and miss by more than their standard errors say. Both are learned from the
domains that the search knows: what the fit says of so many rows of each is regressed on what gradients say of them.

Legend: D known domains, J capabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr

from ideal_proxy.config import SearchConfig
from ideal_proxy.data import TokenRows, read_rows, tokenize_rows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.context import reference
from ideal_proxy.pipeline.finished import SearchRun
from ideal_proxy.pipeline.prepare import load_template
from ideal_proxy.response import Bound, compare
from ideal_proxy.sections import DomainConfig
from ideal_proxy.swarm import MODEL, Run, load_context, load_result
from ideal_proxy.terminal import Reporter, count_text

Array = NDArray[np.float64]

LEVEL = 0.9
MANY = 10**6  # pairs: an interval of the effect itself, without the noise of runs that would show it
LEAST_KNOWN = 3  # domains to learn scale and error from
LITTLE = 0.01  # of base's rows
SCALE_ROWS = 400  # rows whose gradients are taken, of each set


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What some rows of a new set do to every capability, at base's total of tokens."""

    name: str  # of the set
    rows: int  # of it, in place of as many tokens of base
    method: str  # "gradients" or "runs"
    changes: dict[str, Bound]  # of each capability's loss, relative, with 90 % intervals; below 0 is better
    quality: float | None  # rank correlation of gradients with the fit over the known domains; None from runs

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return asdict(self)

    def sentence(self) -> str:
        """Say it."""
        parts = ", ".join(
            f"{name} {change.value:+.1%} [{change.lower:+.1%}, {change.upper:+.1%}]"
            for name, change in self.changes.items()
        )
        told = ""
        if self.quality is not None:
            told = f". Over the domains that are known, gradients rank prices at {self.quality:.2f}"
        return f"{count_text(self.rows, 'row')} of {self.name} in place of as many tokens of base: {parts}{told}"


def price_by_gradients(
    run: SearchRun, source: str, *, name: str, rows: int, form: str = "auto", reporter: Reporter
) -> Price:
    """Price a set from gradients of the proxies that were trained on base."""
    if run.config.has_metrics:
        raise UserError("gradients are derivatives of losses, and a capability is judged by a metric; give --runs 2")
    new = _tokens(run, source, form)
    trained = base_proxies(run)
    grown = [_by_gradients(run, proxy, new, reporter, number) for number, proxy in enumerate(trained, 1)]
    told_JD = np.mean([g for g, _ in grown], axis=0) * rows
    error_JD = np.sqrt(np.mean([e**2 for _, e in grown], axis=0) / len(grown)) * rows
    little = min(float(rows), LITTLE * float(run.base.sum()))  # gradients speak of the first rows
    known_JD = np.array([_fit_says(run, d, little) for d in range(len(run.domains))]).T * rows / little
    scale_J, left_J = calibrated(told_JD[:, :-1], known_JD)
    value_J = scale_J * told_JD[:, -1]
    half_J = norm.ppf(0.5 + LEVEL / 2) * np.hypot(left_J, scale_J * error_JD[:, -1])
    ranks = [spearmanr(a, b).statistic for a, b in zip(told_JD[:, :-1], known_JD, strict=True)]
    return Price(
        name=name, rows=rows, method="gradients", quality=float(np.nanmean(ranks)),
        changes={
            c: Bound(float(v), float(v - h), float(v + h))
            for c, v, h in zip(run.capabilities, value_J, half_J, strict=True)
        },
    )  # fmt: skip


def calibrated(told_JD: Array, known_JD: Array) -> tuple[Array, Array]:
    """Learn what gradients lack from domains that are known: one scale for all, and by how much a domain is missed."""
    D = told_JD.shape[1]
    if D < LEAST_KNOWN:
        raise UserError(f"gradients have no scale of their own, and {D} known domains cannot give one; give --runs 2")
    spread_J = np.maximum(known_JD.std(axis=1), 1e-12)[:, None]
    x, y = told_JD / spread_J, known_JD / spread_J

    def slope(keep: NDArray[np.bool_]) -> float:
        return float((x[:, keep] * y[:, keep]).sum() / max(float((x[:, keep] ** 2).sum()), 1e-300))

    every = np.arange(D)
    left = np.column_stack([y[:, d] - slope(every != d) * x[:, d] for d in every])  # each domain foretold by the others
    error_J = spread_J[:, 0] * np.sqrt((left**2).mean(axis=1) * D / (D - 1))
    return np.full(len(told_JD), max(slope(every >= 0), 0.0)), error_J


def base_proxies(run: SearchRun) -> list[Run]:
    """Find the proxies that were trained on base and whose weights are there."""
    design = run.runs[run.runs["role"] == "design"]
    at_base = np.isclose(run.volumes(design), run.base, rtol=0.01, atol=3 / run.plan["fraction"]).all(axis=1)
    names = design["run"].to_numpy(dtype=str)[at_base]
    found = [load_result(run.folder, name) for name in names.tolist()]
    kept = [proxy for proxy in found if (proxy.folder / MODEL).exists()]
    if not kept or run.config.proxy.model is not None:
        raise UserError(
            f"{run.folder} keeps no weights of a scratch proxy trained on base, so it has no gradients; give --runs 2"
        )
    return kept


def _tokens(run: SearchRun, source: str, form: str) -> TokenRows:
    """Read the new rows as the run's proxies read rows."""
    template = load_template(run.prepared.folder / "tokenizer")
    tokens = tokenize_rows(list(read_rows(source, format=form)), template, run.prepared.context.tokens)
    if not len(tokens):
        raise UserError(f"{source} has no row with a token that carries loss; give rows with an answer")
    return tokens


def _by_gradients(run: SearchRun, proxy: Run, new: TokenRows, reporter: Reporter, number: int) -> tuple[Array, Array]:
    """Give the change of log loss by one row of each domain and of the new set, with errors, (J, D + 1) both."""
    from ideal_proxy.gradients import InfluenceSettings, responses
    from ideal_proxy.proxy import load_weights
    from ideal_proxy.swarm import build_model

    context = load_context(run.folder / "swarm")
    model = build_model(context)
    load_weights(model, proxy.folder / MODEL)
    sets = [*context.domain_rows(), new]
    used = [d for d, count in enumerate(proxy.spec.rows) if count] + [len(sets) - 1]
    volumes = np.array([*proxy.spec.rows, max(1.0, 0.01 * sum(proxy.spec.rows))], dtype=float)
    names = [*run.domains, "\x1fnew"]
    references = {c: context.reference_rows(reference(j, "search")) for j, c in enumerate(run.capabilities)}
    settings = InfluenceSettings(seed=proxy.spec.seed, gradient_rows=SCALE_ROWS, loss=context.train.loss)
    reporter.note(f"gradients of base proxy {number}: {len(used)} sets, {len(references)} capabilities")
    found = responses(model, {names[d]: sets[d] for d in used}, references, volumes[used], settings=settings)
    per_row, error = (np.zeros((len(references), len(sets))) for _ in range(2))
    length = np.array([rows.lengths.mean() for rows in sets])
    losses = np.array([proxy.losses[reference(j, "search")].mean for j in range(len(references))])
    share = length[used] / (volumes[used] @ length[used]) * run.plan["fraction"]  # of the tokens, by one full-size row
    for part, values in ((per_row, found.M), (error, found.se)):
        part[:, used] = values / found.w * share / losses[:, None]
    return per_row, error


def _fit_says(run: SearchRun, domain: int, rows: float) -> Array:
    """Give the change of log loss by so many more rows of a known domain, at the same total of tokens, (J,)."""
    mixture = in_place_of_base(run.base, run.prepared.domains.lengths, domain, rows)
    here, there = (run.model.value_and_gradient(v)[0] for v in (mixture, run.base))
    return np.asarray(np.log(here / there))


def in_place_of_base(base: Array, lengths: Array, domain: int, rows: float) -> Array:
    """Add rows of one domain, and take as many tokens from all in proportion."""
    total = float(base @ lengths)
    added = rows * lengths[domain]
    if added >= total:
        raise UsageError(
            f"{rows:,.0f} rows are {added:,.0f} tokens and base has {total:,.0f}; give --rows a smaller number"
        )
    mixture = base * (1 - added / total)
    mixture[domain] += rows
    return np.asarray(mixture, dtype=np.float64)


def with_set(config: SearchConfig, run: Path, source: str, name: str, form: str) -> SearchConfig:
    """Give a run file with the new set in it, at base 0, that reuses the run."""
    if name in config.domain_names:
        raise UsageError(f"--name {name}: the run has a domain of that name; give another one")
    domain = DomainConfig(name=name, path=source, format=form, base=0)
    rest = {"domains": (*config.domains, domain), "reuse": (str(run.resolve()),), "name": f"price-{name}"}
    return config.model_copy(update=rest)


def price_by_runs(
    run: SearchRun, source: str, *, name: str, rows: int, runs: int, out: Path, form: str = "auto", reporter: Reporter
) -> Price:
    """Price a set by training a few proxies with it, beside the runs that are there."""
    from ideal_proxy.pipeline.outer_loop import open_laboratory
    from ideal_proxy.pipeline.proposal import fit_response

    config = with_set(run.config, run.folder, source, name, form)
    with open_laboratory(config, out, reporter) as laboratory:
        laboratory.warm_start()
        laboratory.judge_reused()
        domains = laboratory.prepared.domains
        at, most = len(domains.names) - 1, float(domains.supply[-1])
        if rows > most:
            reporter.note(f"{name} has {most:,.0f} rows; {rows:,} are repeats of them")
        volumes = [in_place_of_base(domains.base, domains.lengths, at, rows * 2 ** (k // 2)) for k in range(runs)]
        laboratory.try_out(np.array(volumes), laboratory.plan.rates[0])
        model, notes = fit_response(laboratory.evidence(), laboratory.prepared, config.seed)
        for note in notes:
            reporter.note(note)
        predicted = compare(model, volumes[0], domains.base, pairs=MANY, level=LEVEL)
    return Price(
        name=name, rows=rows, method="runs", quality=None,
        changes={
            c: Bound(r.value - 1, r.lower - 1, r.upper - 1)
            for c, r in zip(run.capabilities, predicted.ratios, strict=True)
        },
    )  # fmt: skip


def names_of_sources(sources: Sequence[str], given: Sequence[str]) -> list[str]:
    """Name new sets: as given, else by their files."""
    if given and len(given) != len(sources):
        raise UsageError(f"{len(sources)} sets and {len(given)} names; give --name once for each --add, or not at all")
    return list(given) or [Path(source.partition("?")[0]).stem or source for source in sources]
