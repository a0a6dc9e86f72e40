"""A run that a trainer of the user's makes: its rows and configuration go out, losses, scores or a model come back.

The trainer's folder is `RUN/work`: `run.json` says what is wanted, `data/` holds what `export` writes for the trainer,
`references/SPLIT/NAME.jsonl` the rows to judge on. What comes back is `results.json`, or a model that is judged here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.config import SearchConfig
from ideal_proxy.data import TokenRows, read_rows, row_keys, source_fingerprint
from ideal_proxy.errors import UserError, shortened
from ideal_proxy.export import export_mixture
from ideal_proxy.mixture import DomainVolume, MixtureFile, domain_order, draw
from ideal_proxy.proxy import RowLosses, run_program, written_out
from ideal_proxy.store import atomic_write_json, copy_checked, read_json
from ideal_proxy.swarm.context import RunSpec, SwarmContext, draw_run

ROWS = "rows"  # of the context's folder: every row as one line of JSON, beside its tokens
TRAINER, WORK, LOG = "trainer.json", "work", "command.log"
RESULTS = "results.json"
MOST_TOKENS = 1 << 40  # of a row
WHERE_MODELS_LIE = ("model", "data/trained")  # in a run's folder; `trained` is where an export sends its trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerCommand:
    """A trainer of the user's, as every run of a search calls it."""

    command: str  # program and arguments with places to fill in; no shell reads it
    export: str | None  # what it reads, a target of `export`; None is rows as JSONL
    model: str  # what it starts from: a folder or a hub id
    capabilities: tuple[str, ...]  # names of the capabilities, whose numbers stand in the references' names
    folder: str = "."  # where it runs

    @property
    def identity(self) -> str:
        """A hash of what a run's numbers depend on."""
        return hashlib.sha256(json.dumps([self.command, self.export, self.model]).encode()).hexdigest()[:32]

    @property
    def told(self) -> str:
        """The command as messages name it."""
        return f"proxy.command ({shortened(self.command, 80)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One run of a trainer."""

    run: str  # its name
    seed: int
    learning_rate: float
    device: str
    context: int  # longest row, tokens
    settings: Any  # the proxies' `TrainSettings`
    references: Mapping[str, TokenRows]  # by the name in the swarm, such as `search-0`


def trainer_of(config: SearchConfig) -> TrainerCommand | None:
    """Return the user's own trainer of the proxies; None where they are trained here."""
    proxy = config.proxy
    if proxy.command is None:
        return None
    return TrainerCommand(
        command=proxy.command, export=proxy.export, model=str(proxy.model), folder=proxy.folder or ".",
        capabilities=tuple(config.capability_names),
    )  # fmt: skip


def save_lines(path: Path, lines: Sequence[bytes]) -> None:
    """Write the rows of a set, each on its line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines))


def place_rows(prepared: Path, context: Path, domains: int, capabilities: int) -> None:
    """Put the rows that were written in preparation beside the tokens that workers read."""
    for kind, count in (("domain", domains), ("search", capabilities), ("verify", capabilities)):
        for index in range(count):
            target = context / ROWS / f"{kind}-{index}.jsonl"
            copy_checked(prepared / f"{kind}-{index}.jsonl", target)


def hand_out(
    place: Path,
    trainer: TrainerCommand,
    wanted: Wanted,
    rows_of: Callable[[str], list[bytes]],
    domains: Sequence[tuple[str, TokenRows, int, int]],
) -> None:
    """Write what a trainer reads; of each domain its name, rows, how many a proxy sees and how many it draws."""
    shutil.rmtree(place, ignore_errors=True)
    volumes = []
    for index, (name, rows, available, drawn) in enumerate(domains):
        if not drawn:
            continue
        # The draw itself, repeats and all: each of its rows is to be taken once.
        taken, _ = draw(domain_order(wanted.seed, name, rows.keys)[:available], drawn)
        lines = rows_of(f"domain-{index}")
        source = place / "rows" / f"{index}.jsonl"
        save_lines(source, [lines[n] for n in taken])
        fingerprint = source_fingerprint(row_keys(list(read_rows(str(source), format="chat", max_bad=-1))))
        volumes.append(DomainVolume(
            name=name, source=str(source), format="chat", fingerprint=fingerprint, available=drawn, rows=drawn,
        ))  # fmt: skip
    settings = wanted.settings
    mixture = MixtureFile(
        name=wanted.run, seed=wanted.seed, domains=volumes, loss=settings.loss, batch=settings.batch,
        provenance={"proxy": {"context": wanted.context}},
    )  # fmt: skip
    exported = trainer.export is not None
    export_mixture(
        mixture, trainer.export or "jsonl", place / "data", model=trainer.model if exported else None,
        context=wanted.context, learning_rate=wanted.learning_rate,
    )  # fmt: skip
    references: dict[str, dict[str, str]] = {}
    for key in wanted.references:
        split, _, number = key.partition("-")
        name = trainer.capabilities[int(number)]
        target = place / "references" / split / f"{name}.jsonl"
        save_lines(target, rows_of(key))
        references.setdefault(split, {})[name] = str(target)
    atomic_write_json(place / "run.json", {
        "run": wanted.run, "seed": wanted.seed, "learning_rate": wanted.learning_rate, "device": wanted.device,
        "model": trainer.model, "context": wanted.context, "loss": settings.loss,
        "batch": settings.batch.model_dump(exclude_none=True), "data": str(place / "data"),
        "rows": {name: drawn for name, _, _, drawn in domains}, "references": references,
    })  # fmt: skip


def train_by_command(
    place: Path,
    log: Path | None,
    trainer: TrainerCommand,
    wanted: Wanted,
    *,
    timeout_seconds: float | None,
    should_stop: Callable[[], bool] | None = None,
) -> float:
    """Run the trainer on what was handed out; return the seconds it took."""
    values = {
        "run": place, "data": place / "data", "model": trainer.model, "seed": wanted.seed, "device": wanted.device,
        "learning_rate": wanted.learning_rate,
    }  # fmt: skip
    started = time.monotonic()
    run_program(
        written_out(trainer.command, values, trainer.told), told=trainer.told, folder=trainer.folder,
        setting="proxy.command", environment={f"IDEAL_PROXY_{name.upper()}": str(v) for name, v in values.items()},
        seconds=timeout_seconds, too_long="raise proxy.timeout_seconds", should_stop=should_stop, log=log,
    )  # fmt: skip
    return time.monotonic() - started


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a trainer wrote to `results.json`."""

    losses: dict[str, RowLosses]  # by the reference's name in the swarm; empty where it reports none
    scores: dict[str, float]


def read_results(place: Path, trainer: TrainerCommand, references: Mapping[str, TokenRows]) -> Reported | None:
    """Read a trainer's own results; None where it wrote none."""
    path = place / RESULTS
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{trainer.told} wrote a {RESULTS} that is not JSON ({str(error)[:120]})") from error
    if not isinstance(value, dict) or not {"losses", "scores"} & set(value) or set(value) - {"losses", "scores"}:
        raise UserError(f"{trainer.told}: {RESULTS} must be an object with `losses`, `scores` or both")
    given = value.get("scores") or {}
    if not isinstance(given, dict) or not all(isinstance(part, dict) for part in given.values()):
        raise UserError(f'{trainer.told}: scores in {RESULTS} must be {{"SPLIT": {{"CAPABILITY": NUMBER}}}}')
    losses, scores = {}, {}
    for key, rows in references.items():
        split, _, number = key.partition("-")
        name = trainer.capabilities[int(number)]
        if "losses" in value:
            losses[key] = _losses(_entry(value["losses"], split, name, trainer, "losses"), rows, name, trainer)
        if name in given.get(split, {}):
            scores[key] = _number(given[split][name], f"{trainer.told}: the score of {name} in {RESULTS}")
    return Reported(losses=losses, scores=scores)


def _entry(losses: Any, split: str, name: str, trainer: TrainerCommand, what: str) -> Any:
    try:
        return losses[split][name]
    except (TypeError, KeyError) as error:
        raise UserError(
            f'{trainer.told}: {RESULTS} lacks {what} of {name} on the {split} rows; write "{what}": {{"{split}": '
            f'{{"{name}": NUMBER}}}}, a capability an entry'
        ) from error


def _losses(entry: Any, rows: TokenRows, name: str, trainer: TrainerCommand) -> RowLosses:
    """Take a mean loss, which every token then has, or a sum of every row."""
    told = f"{trainer.told}: the loss of {name} in {RESULTS}"
    tokens = rows.supervised_tokens
    if not isinstance(entry, dict):
        return RowLosses(_above_zero(np.array([_number(entry, told)]), told) * tokens.astype(np.float64), tokens)
    if set(entry) not in ({"loss_sum"}, {"loss_sum", "tokens"}):
        raise UserError(f"{told} must be a number, or an object with loss_sum and tokens, a list of each row's")
    if "tokens" in entry:
        counts = np.array([_number(x, told) for x in _row_list(entry["tokens"], len(rows), told)])
        if ((counts < 1) | (counts > MOST_TOKENS) | (counts % 1 != 0)).any():
            raise UserError(f"{told}: tokens must be a whole number in every row, at least 1")
        tokens = counts.astype(np.int64)
    sums = np.array([_number(x, told) for x in _row_list(entry["loss_sum"], len(rows), told)], dtype=np.float64)
    return RowLosses(_above_zero(sums, told), tokens)


def _above_zero(losses: Any, told: str) -> Any:
    """Refuse what cannot be nats: changes are relative to the loss, and a sign would turn them round."""
    if (losses < 0).any() or not losses.sum() > 0:
        raise UserError(f"{told} has {losses.min():g}; nats are above 0 (report a score under `scores`)")
    return losses


def _row_list(values: Any, count: int, told: str) -> list[Any]:
    if not isinstance(values, list) or len(values) != count:
        got = f"{len(values):,} entries" if isinstance(values, list) else f"{values!r:.40}"
        raise UserError(f"{told} must have an entry for each of the {count:,} rows, got {got}")
    return values


def _number(value: Any, told: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{told} is {value!r:.40}; it must be a finite number")
    return float(value)


def trained_model(place: Path) -> Path | None:
    """Find the model that a trainer left, whole or as an adapter."""
    for name in WHERE_MODELS_LIE:
        if any((place / name / config).is_file() for config in ("config.json", "adapter_config.json")):
            return place / name
    return None


def load_trained(folder: Path, trainer: TrainerCommand) -> Any:
    """Load what a trainer left as one plain model, in float32 on the CPU."""
    from ideal_proxy.proxy import Pretrained, load_causal_lm, quiet_libraries

    adapter = (folder / "adapter_config.json").is_file()
    try:
        if adapter:
            from peft import AutoPeftModelForCausalLM

            with quiet_libraries():
                merged = AutoPeftModelForCausalLM.from_pretrained(str(folder)).float().merge_and_unload()
                folder = folder.with_name("merged")
                merged.save_pretrained(str(folder))
        return load_causal_lm(Pretrained(name=str(folder)), context=1)
    except ImportError as error:
        if adapter:
            raise UserError(f"{trainer.told} left an adapter, and reading it needs peft; pip install peft") from error
        raise
    except Exception as error:  # whatever a foreign file makes the libraries say
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{trainer.told} left a model in {folder.name}/ that cannot be loaded ({why})") from error


def do_command(
    context: SwarmContext,
    folder: Path,
    spec: RunSpec,
    device: Any,
    *,
    judge: Callable[[Any, RunSpec], dict[str, RowLosses]],
    should_stop: Callable[[], bool] | None = None,
) -> tuple[dict[str, RowLosses], dict[str, Any], Any]:
    """Make one run: hand out its rows, train, read or judge. Return losses, numbers, and the model where it is read."""
    from ideal_proxy.proxy import count_products, of_rows, run_flops

    trainer, place, domains = read_command(context.folder), folder / WORK, context.domain_rows()
    names = spec.references or context.references
    wanted = Wanted(
        run=spec.id, seed=spec.seed, learning_rate=spec.learning_rate, device=str(device), context=context.context,
        settings=context.train, references={name: context.reference_rows(name) for name in names},
    )  # fmt: skip
    drawn = list(zip(context.domains, domains, context.available, spec.rows, strict=True))
    hand_out(place, trainer, wanted, lines_of(context.folder), drawn)
    log = None if spec.role == "probe" else folder / LOG  # that one's folder does not outlast it
    spent = train_by_command(place, log, trainer, wanted, timeout_seconds=spec.timeout_seconds, should_stop=should_stop)
    found, left, model = read_results(place, trainer, wanted.references), trained_model(place), None
    began = time.monotonic()
    losses = found.losses if found else {}
    if not losses or spec.metrics:
        if left is None:
            raise no_results(trainer)
        model = load_trained(left, trainer).to(device)
    order = draw_run(context, domains, spec)
    tokens = of_rows([rows.lengths for rows in domains], *order)
    supervised = int(of_rows([rows.supervised_tokens for rows in domains], *order).sum())
    total, squares = int(tokens.sum()), int((tokens**2).sum())
    metrics = {
        "rows": len(tokens), "tokens": total, "supervised_tokens": supervised,
        "steps": len(context.train.bounds(tokens)) - 1, "steps_resumed": 0, "train_loss": [],
        "flops": 0.0 if model is None else run_flops(count_products(model), total, supervised, squares),
        "train_seconds": spent, "judged_by": "command" if losses else "ideal-proxy",
        "reported": found.scores if found else {},
    }  # fmt: skip
    losses = losses or judge(model, spec)
    return losses, metrics | {"evaluate_seconds": time.monotonic() - began}, model


def no_results(trainer: TrainerCommand) -> UserError:
    """Say that a trainer left nothing to judge."""
    where = " or ".join("{run}/" + name for name in WHERE_MODELS_LIE)
    return UserError(f"{trainer.told} left neither {{run}}/{RESULTS} nor a model in {where}")


def lines_of(folder: Path) -> Callable[[str], list[bytes]]:
    """Read rows as lines, by the name of their set."""
    return lambda name: (folder / ROWS / f"{name}.jsonl").read_bytes().splitlines(keepends=True)


def read_command(folder: Path) -> TrainerCommand:
    """Read the trainer of a context."""
    value = read_json(folder / TRAINER)
    return TrainerCommand(**(value | {"capabilities": tuple(value["capabilities"])}))


def write_command(folder: Path, trainer: TrainerCommand) -> None:
    """Keep the trainer beside a context's other files."""
    atomic_write_json(folder / TRAINER, asdict(trainer))
