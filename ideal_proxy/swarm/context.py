"""What every run of a swarm shares, as files: token arrays, the warm start and the settings; and what a run leaves.

Numpy only. Workers map the token arrays, so a machine holds them once however many workers it runs.
Legend: D domains, N rows of a set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.data import TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.mixture import domain_order, draw, training_order
from ideal_proxy.proxy import Items, MetricSpec, RowLosses, TrainSettings, read_row_losses, write_row_losses
from ideal_proxy.store import atomic_write_json, is_complete, mark_complete, read_json

SETTINGS = "settings.json"
METRICS = "metrics.json"
ROW_LOSSES = "row_losses.npz"
RESPONSES = "responses.npz"
MODEL = "model.safetensors"
BASE = "base"
WARM_WEIGHTS = "warm.safetensors"  # of the context's folder: a warm start that was made by an earlier search
WARM_RUN = "warm"
JUDGED = "judged"
TOKENIZER = "tokenizer"  # in the context's folder, where runs are judged by metrics
ZERO_RUN = "zero"
IMITATED = "imitated"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One proxy run."""

    id: str  # its folder's name under `runs/`
    rows: tuple[int, ...]  # (D,) rows that the proxy draws of each domain, repeats counted
    volumes: tuple[float, ...]  # (D,) the full-size volumes they stand for, rows
    seed: int  # seed of the permutations and of the training order
    # "base", "design", "verify", "sweep", "warm", …; "judged" and "imitated" train nothing: their weights lie in the
    # folder, or are a blend
    role: str
    learning_rate: float  # peak rate
    references: tuple[str, ...] = ()  # names of the reference sets to judge on; () is all of them
    save_model: bool = False  # keep the final weights as `model.safetensors`
    responses: str = ""  # "" trains; "implicit" or "unrolled" estimates the mixing responses at this mixture instead
    trained: str = ""  # the finished run whose weights an implicit estimate takes, or that is judged anew
    timeout_seconds: float | None = None  # a run of the user's trainer is ended after so long
    metrics: tuple[MetricSpec, ...] = ()  # what else the trained proxy is judged by
    blend: tuple[tuple[str, float], ...] = ()  # finished runs, and the share that each one's weights have in this one's

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON takes it."""
        value = dataclasses.asdict(self)
        return {key: list(entry) if isinstance(entry, tuple) else entry for key, entry in value.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunSpec:
        """Read what `to_json` gave."""
        fields: dict[str, Any] = {k: tuple(entry) if isinstance(entry, list) else entry for k, entry in value.items()}
        fields["metrics"] = tuple(MetricSpec(**metric) for metric in fields.get("metrics", ()))
        fields["blend"] = tuple((str(run), float(share)) for run, share in fields.get("blend", ()))
        return cls(**fields)


def what_counts(spec: RunSpec) -> tuple[Any, ...]:
    """Return the parts of a specification that its numbers depend on; equal for runs with the same results."""
    metrics = tuple(metric.identity for metric in spec.metrics)
    apart: tuple[Any, ...] = (spec.role, spec.trained) if spec.role in {"warm", JUDGED} else spec.blend
    return spec.rows, spec.seed, spec.learning_rate, apart, spec.references, spec.responses, metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a finished run left."""

    spec: RunSpec  # the run
    losses: dict[str, RowLosses]  # per reference set, the loss of every row
    metrics: dict[str, Any]  # the whole of `metrics.json` (rows, tokens, supervised_tokens, steps, seconds, …)
    folder: Path  # the run's folder

    @property
    def scores(self) -> dict[str, float]:
        """The scores of its metrics, by key."""
        measured = {key: float(found["score"]) for key, found in self.metrics.get("scores", {}).items()}
        return measured | {key: float(score) for key, score in self.metrics.get("reported", {}).items()}

    def items(self, key: str) -> Items | None:
        """What a metric gave item by item; None where it does not say."""
        found = self.metrics.get("scores", {}).get(key, {}).get("items")
        return None if found is None else Items.from_json(found)

    @property
    def seconds(self) -> float:
        """How long the run kept one worker busy: training, judging by loss, metrics."""
        parts = ("train_seconds", "evaluate_seconds", "metric_seconds")
        return float(sum(self.metrics.get(part, 0.0) for part in parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmContext:
    """The prepared files and settings that all runs of a swarm share."""

    folder: Path  # where they lie
    domains: tuple[str, ...]  # D names
    references: tuple[str, ...]  # names of the reference sets
    # (D,) rows that a proxy sees of each domain, the first of its permutation (φ · available)
    available: tuple[int, ...]
    size: str  # proxy size of the dial; "" for a pretrained proxy
    vocab_size: int  # tokens of the vocabulary
    context: int  # longest row, tokens
    train: TrainSettings = field(default_factory=TrainSettings)  # settings of every run but for its learning rate
    init_seed: int = 0  # seed of the initial weights, the same for all runs
    warm: bool = False  # whether runs start from the warm start `runs/warm/model.safetensors`
    warm_from: str = ""  # SHA-256 of the weights of an earlier search's warm start, taken as they are; "" makes one
    warm_learning_rate: float = 2e-3  # peak rate of the warm start
    warm_tokens: int | None = None  # tokens of each domain in the warm start; None takes the default
    threads: int = 1  # threads of a worker on a CPU; part of the results' last bits, so it is fixed here
    device: str = "cpu"  # "cpu", "cuda" (workers share out the devices), "cuda:1", "mps"
    # fingerprint of a pretrained proxy's weights, which lie in `base/` of the folder; "" for a scratch proxy
    base: str = ""
    lora_rank: int | None = None  # rank of the low-rank updates of a pretrained proxy; None trains every weight
    trust_remote_code: bool = False  # run code that came with the pretrained model
    trainer: str = ""  # hash of the user's own trainer, which `command_runs` keeps; "" where proxies are trained here

    @property
    def base_folder(self) -> Path:
        """Where a pretrained proxy's weights lie."""
        return self.folder / BASE

    def domain_rows(self) -> list[TokenRows]:
        """Map the D domains' rows."""
        return [TokenRows.load(self.folder / "domains" / f"{i:04d}") for i in range(len(self.domains))]

    def reserved_rows(self) -> list[TokenRows]:
        """Map the D domains' rows reserved for the warm start."""
        return [TokenRows.load(self.folder / "reserved" / f"{i:04d}") for i in range(len(self.domains))]

    def reference_rows(self, name: str) -> TokenRows:
        """Map the rows of one reference set."""
        return TokenRows.load(self.folder / "references" / f"{self.references.index(name):04d}")

    def fingerprint(self) -> str:
        """Return a hash of the settings and data that a result depends on; the folder may be moved."""
        return hashlib.sha256(json.dumps(read_json(self.folder / SETTINGS), sort_keys=True).encode()).hexdigest()[:32]


def prepare_context(
    context: SwarmContext,
    *,
    domains: Sequence[TokenRows],
    references: Sequence[TokenRows],
    reserved: Sequence[TokenRows] = (),
) -> SwarmContext:
    """Write a context's files, the settings last, so that a half-written one is never used; an equal one is kept."""
    if len(domains) != len(context.domains) or len(references) != len(context.references):
        raise UserError("a swarm context needs one set of rows for every domain and every reference name")
    if context.warm and len(reserved) != len(context.domains):
        raise UserError("a warm start needs reserved rows of every domain")
    for name, rows, available in zip(context.domains, domains, context.available, strict=True):
        if available > len(rows):
            raise UserError(
                f"domain {name!r}: a proxy should see {available} rows but only {len(rows)} are left beside those "
                "reserved for the warm start; choose a smaller proxy fraction"
            )
    settings = {
        key: value for key, value in dataclasses.asdict(context).items()
        if key != "folder" and (key not in {"warm_from", "trainer"} or value)  # earlier versions had none, and resume
    }  # fmt: skip
    settings["data"] = {
        part: [_fingerprint(rows) for rows in sets]
        for part, sets in (("domains", domains), ("references", references), ("reserved", reserved))
    }
    settings = json.loads(json.dumps(settings))
    target = context.folder / SETTINGS
    sound = False
    if target.is_file():
        with contextlib.suppress(UserError):  # damaged: all that it told of is made anew
            before, sound = read_json(target), True
    if sound:
        before["train"] = dataclasses.asdict(TrainSettings(**before["train"]))  # earlier versions said less
        if before != settings:
            raise UserError(
                f"{context.folder} was prepared from other data or settings; choose another --out or remove it"
            )
    for part, sets in (("domains", domains), ("references", references), ("reserved", reserved)):
        for index, rows in enumerate(sets):
            place = context.folder / part / f"{index:04d}"
            if not (sound and _is_sound(place)):
                rows.save(place)
    atomic_write_json(target, settings, seal=True)
    return context


def _is_sound(place: Path) -> bool:
    """Tell whether token rows are as they were written."""
    try:
        TokenRows.load(place)
    except UserError:
        return False
    return True


def load_context(folder: str | Path) -> SwarmContext:
    """Open a prepared context."""
    settings = read_json(Path(folder) / SETTINGS)
    settings.pop("data")
    train = TrainSettings(**settings.pop("train"))
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return SwarmContext(folder=Path(folder), train=train, **fields)


def draw_run(
    context: SwarmContext, token_rows: Sequence[TokenRows], spec: RunSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a run's rows in training order: domain (R,) and row index (R,), as `proxy.train` takes them."""
    if len(spec.rows) != len(context.domains):
        raise UserError(f"run {spec.id!r} has {len(spec.rows)} volumes for {len(context.domains)} domains")
    drawn = []
    for name, rows, available, wanted in zip(context.domains, token_rows, context.available, spec.rows, strict=True):
        order = domain_order(spec.seed, name, rows.keys)[:available]
        drawn.append((rows.keys, *draw(order, int(wanted))))
    return training_order(spec.seed, list(context.domains), drawn)


def save_result(
    folder: Path, context: SwarmContext, spec: RunSpec, losses: Mapping[str, RowLosses], metrics: Mapping[str, Any]
) -> None:
    """Write a run's results, the marker last."""
    write_row_losses(folder / ROW_LOSSES, losses)
    means = {name: value.mean for name, value in losses.items()}
    atomic_write_json(
        folder / METRICS,
        {"spec": spec.to_json(), "context": context.fingerprint(), "reference_loss": means, **metrics},
    )
    mark_complete(folder, (METRICS, ROW_LOSSES, MODEL))


def load_result(run_dir: str | Path, run_id: str) -> Run:
    """Read a finished run; one that is not complete is an error."""
    folder = Path(run_dir) / "runs" / run_id
    if not is_complete(folder):
        raise UserError(f"run {run_id!r} in {run_dir} is not complete; run the same search again to finish it")
    metrics = read_json(folder / METRICS)
    losses = read_row_losses(folder / ROW_LOSSES, list(metrics["reference_loss"]))
    return Run(spec=RunSpec.from_json(metrics["spec"]), losses=losses, metrics=metrics, folder=folder)


def _fingerprint(rows: TokenRows) -> str:
    """Return a short hash of a set's token arrays."""
    digest = hashlib.sha256()
    for array in (rows.ids, rows.supervised, rows.offsets, rows.keys):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
