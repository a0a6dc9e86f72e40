"""The problems that `truth.py` and `worth.py` measure on, and their resumable proxy runs.

demo: the five procedural domains with shared skills and conflict, at an even base. sft5: five domains of real rows.
sources: sft5 split by its `source` field. All proxies are warm-started, draw with common random numbers, and are kept
in the run directory, so a second call trains nothing.
"""

from __future__ import annotations

import dataclasses
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ideal_proxy.data.demo import DOMAINS
from ideal_proxy.data.rows import Row, read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.data.tokens import TokenRows
from ideal_proxy.gradients.factors import KroneckerOperator
from ideal_proxy.gradients.influence import InfluenceSettings, mixture_factors, responses
from ideal_proxy.gradients.records import ResponseMatrix
from ideal_proxy.gradients.unrolled import unrolled_responses
from ideal_proxy.mixture.draws import apportion, reserve_mask, search_verify_split
from ideal_proxy.proxy.model import build_proxy
from ideal_proxy.proxy.records import TrainSettings
from ideal_proxy.proxy.training import load_weights
from ideal_proxy.swarm.context import MODEL, WARM_RUN, RunSpec, SwarmContext, draw_run, prepare_context
from ideal_proxy.swarm.scheduler import Swarm, warm_spec

ROOT = Path(__file__).resolve().parents[2]
SFT5 = ROOT.parent / "shared" / "data" / "sft5"
SFT5_DOMAINS = ("mathematics", "coding", "reasoning", "instruction", "trust")
WARM_FRACTION = 0.15


@dataclass
class Problem:
    """Token rows, base volumes (proxy rows), and a swarm that trains what is asked for."""

    name: str
    context: SwarmContext
    run_dir: Path
    base: NDArray[np.float64]
    learning_rate: float
    workers: int

    def __post_init__(self) -> None:
        self.domains = dict(zip(self.context.domains, self.context.domain_rows(), strict=True))
        self.references = {name: self.context.reference_rows(name) for name in self.context.references}
        self.settings = dataclasses.replace(self.context.train, learning_rate=self.learning_rate)

    @property
    def names(self) -> tuple[str, ...]:
        return self.context.domains

    def spec(self, volumes: NDArray[np.float64], seed: int) -> RunSpec:
        rows = tuple(int(r) for r in apportion(volumes, round(float(volumes.sum()))))
        name = "-".join(map(str, rows)) if len(rows) < 8 else f"{zlib.crc32(repr(rows).encode()):08x}"
        base = np.array_equal(volumes, self.base)
        return RunSpec(
            id=f"s{seed}-{name}", rows=rows, volumes=rows, seed=seed, role="base" if base else "design",
            learning_rate=self.learning_rate, save_model=True,
        )  # fmt: skip

    def losses(self, runs: Sequence[tuple[NDArray[np.float64], int]]) -> NDArray[np.float64]:
        """(R, J) reference losses of proxies trained on (volumes, seed); the `Runner` of `finite_responses`."""
        if not (self.run_dir / "runs" / WARM_RUN / MODEL).exists():
            with Swarm(self.context, self.run_dir, workers=1) as swarm:
                swarm.run([warm_spec(self.context, 0)])
        specs = [self.spec(np.asarray(volumes), seed) for volumes, seed in runs]
        distinct = list({spec.id: spec for spec in specs}.values())
        done = 0

        def on_event(event: Any) -> None:
            nonlocal done
            if event.kind == "finished":
                done += 1
                print(f"\r{done} of {len(distinct)} runs", end="", file=sys.stderr)

        with Swarm(self.context, self.run_dir, workers=self.workers) as swarm:
            outcome = swarm.run(distinct, on_event=on_event)
        if outcome.failures:
            raise RuntimeError(f"runs failed: {outcome.failures}")
        return np.array([[outcome.results[spec.id].losses[c].mean for c in self.references] for spec in specs])

    def start(self) -> Any:
        """The warm-started proxy."""
        model = build_proxy(self.context.size, self.context.vocab_size, self.context.context, self.context.init_seed)
        load_weights(model, self.run_dir / "runs" / WARM_RUN / MODEL)
        return model

    def base_model(self, seed: int) -> Any:
        """The proxy trained on the base mixture, training it where it is not there."""
        self.losses([(self.base, seed)])
        model = self.start()
        load_weights(model, self.run_dir / "runs" / self.spec(self.base, seed).id / MODEL)
        return model

    def order(self, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return draw_run(self.context, list(self.domains.values()), self.spec(self.base, seed))

    def drawn(self, seed: int) -> dict[str, TokenRows]:
        """The rows that the base run of a seed trained on, once each."""
        domain, row = self.order(seed)
        return {name: rows.select(np.unique(row[domain == d])) for d, (name, rows) in enumerate(self.domains.items())}

    def training_tokens(self) -> int:
        domain, row = self.order(0)
        return int(sum(rows.lengths[row[domain == d]].sum() for d, rows in enumerate(self.domains.values())))

    def estimates(self, seed: int, settings: InfluenceSettings, methods: Sequence[str]) -> dict[str, ResponseMatrix]:
        """One-model estimators on a base proxy: "first-order", "implicit ekfac 0.01", "product ekfac" (the release)."""
        result, made = {}, dict[str, Any]()
        place = self.run_dir / "estimates" / f"{seed}-{settings.factor_rows}-{settings.gradient_rows}"
        place.mkdir(parents=True, exist_ok=True)
        for name in methods:
            kept = place / f"{name.replace(' ', '_')}.npz"
            if not kept.exists():
                self._estimate(seed, settings, name, made).save(kept)
            result[name] = ResponseMatrix.load(kept)
        return result

    def unrolled(self, seed: int, of: Literal["rows", "weights"] = "rows") -> ResponseMatrix:
        """Through the whole training of a base proxy."""
        kept = self.run_dir / "estimates" / f"{seed}-unrolled-{of}.npz"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            found = unrolled_responses(
                self.start(), self.order(seed), self.domains, self.references, self.settings, of=of
            )
            found.save(kept)
        return ResponseMatrix.load(kept)

    def _estimate(self, seed: int, settings: InfluenceSettings, name: str, made: dict[str, Any]) -> ResponseMatrix:
        """One estimate; model, rows and factors of a seed are made once."""
        if "model" not in made:
            made["model"], made["drawn"] = self.base_model(seed), self.drawn(seed)
        model, drawn = made["model"], made["drawn"]
        kind, factors, damping = (*name.split(), "", "")[:3]
        options: dict[str, Any] = {"settings": settings}
        tokens = 0
        if kind == "first-order":
            options["method"] = kind
        else:
            if factors not in made:
                changed = dataclasses.replace(settings, factors=factors)  # type: ignore[arg-type]
                made[factors] = mixture_factors(model, drawn, self.base, changed)
            fitted, tokens = made[factors]
            options["operator"] = (
                KroneckerOperator(fitted, lambda values: values)
                if kind == "product"
                else fitted.inverse(float(damping))
            )
        estimate = responses(model, drawn, self.references, self.base, **options)
        cost = dataclasses.replace(estimate.cost, gradient_tokens=estimate.cost.gradient_tokens + tokens)
        return dataclasses.replace(estimate, cost=cost)


def _rows(problem: str, available: int) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    if problem == "demo":
        train = {name: list(read_rows(f"demo:{name}?rows={available}")) for name in DOMAINS}
        judge = {name: list(read_rows(f"demo:{name}?rows=500&split=reference")) for name in DOMAINS}
        return train, judge
    train = {name: list(read_rows(SFT5 / name / "train.jsonl")) for name in SFT5_DOMAINS}
    judge = {name: list(read_rows(SFT5 / name / "reference.jsonl")) for name in SFT5_DOMAINS}
    if problem == "sources":
        split: dict[str, list[Row]] = {}
        for name, rows in train.items():
            for row in rows:
                split.setdefault(f"{name}/{row.raw['source']}", []).append(row)
        train = {name: rows for name, rows in sorted(split.items()) if len(rows) >= 60}
    return train, judge


def prepare(
    problem: str, run_dir: Path, *, size: str, rows: int, context: int, vocabulary: int, learning_rate: float,
    workers: int, available: int = 2400,
) -> Problem:  # fmt: skip
    """Tokenise a problem and lay out its swarm; `rows` is the total of the base mixture."""
    train, judge = _rows(problem, available)
    return prepare_rows(
        problem, run_dir, train, judge, size=size, rows=rows, context=context, vocabulary=vocabulary,
        learning_rate=learning_rate, workers=workers, even=problem != "sources",
    )  # fmt: skip


def prepare_rows(
    name: str, run_dir: Path, train: dict[str, list[Row]], judge: dict[str, list[Row]], *, size: str,
    context: int, vocabulary: int, learning_rate: float, workers: int, rows: int | None = None, even: bool = False,
    half: Literal["search", "verify"] = "search", most_judged: int | None = None,
    settings: TrainSettings | None = None, **options: Any,
) -> Problem:  # fmt: skip
    """The same with rows at hand; a capability is judged on one half of its reference rows, base is all rows."""
    tokenizer = train_tokenizer((text for part in train.values() for row in part for _, text in row.pairs), vocabulary)
    template = make_template(tokenizer, plain=True)
    tokens = {name: tokenize_rows(part, template, context, run_dir / "cache") for name, part in train.items()}
    reserved = {name: reserve_mask(part.split_keys, WARM_FRACTION) for name, part in tokens.items()}
    judged = {name: tokenize_rows(part, template, context, run_dir / "cache") for name, part in judge.items()}
    for name_, part in judged.items():
        search = search_verify_split(part.split_keys)
        judged[name_] = part.select(np.flatnonzero(search if half == "search" else ~search)[:most_judged])
    free = {name: part.select(np.flatnonzero(~reserved[name])) for name, part in tokens.items()}
    base = np.array([len(part) for part in free.values()], dtype=float)
    if rows is not None:
        base = np.full(len(base), rows / len(base)) if even else base * rows / base.sum()
        base = apportion(base, rows).astype(float)
    layout = SwarmContext(
        folder=run_dir / "context", domains=tuple(free), references=tuple(judged),
        available=tuple(len(part) for part in free.values()), size=size, vocab_size=len(tokenizer), context=context,
        train=settings or TrainSettings(), **({"warm": True} | options),
    )  # fmt: skip
    layout = prepare_context(
        layout, domains=list(free.values()), references=list(judged.values()),
        reserved=[tokens[name].select(np.flatnonzero(mask)) for name, mask in reserved.items()],
    )  # fmt: skip
    return Problem(name, layout, run_dir, base, learning_rate, workers)


def add_arguments(parser: Any) -> None:
    parser.add_argument("--problem", choices=("demo", "sft5", "sources"), default="demo")
    parser.add_argument("--size", default="0.1M")
    parser.add_argument("--rows", type=int, default=2000, help="rows of the base mixture")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=320)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)


def from_arguments(arguments: Any) -> Problem:
    run_dir = (
        arguments.run_dir
        or Path("/tmp")
        / f"ideal-gradient-{arguments.problem}-{arguments.size}-{arguments.rows}-{arguments.learning_rate:g}"
    )
    return prepare(
        arguments.problem, run_dir, size=arguments.size, rows=arguments.rows, context=arguments.context,
        vocabulary=arguments.vocabulary, learning_rate=arguments.learning_rate, workers=arguments.workers,
    )  # fmt: skip
