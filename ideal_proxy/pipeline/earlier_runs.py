"""Runs of earlier searches, by content: what a new search copies of them, so that it needs the old folders no more.

A package holds one earlier search: its row record, its runs as they were drawn, and what each lost on every reference
row, found by the row's key. A search that itself reused others passes their packages on.

Legend: R runs, N distinct reference rows.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig, load_config
from ideal_proxy.data import KEY_VERSION
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.plan import read_plan
from ideal_proxy.pipeline.plan_cost import settings_of
from ideal_proxy.pipeline.row_record import RECORD, RowRecord, load_record, save_record
from ideal_proxy.pipeline.stage import LOWER
from ideal_proxy.sections import size_name
from ideal_proxy.store import (
    NO_ARRAYS,
    atomic_write_bytes,
    atomic_write_json,
    damaged_file,
    is_complete,
    is_whole,
    mark_complete,
    read_json,
    refuse_damaged,
    run_folder,
)
from ideal_proxy.swarm import JUDGED, MODEL, WARM_RUN, WARM_WEIGHTS, ZERO_RUN, Run, load_result

Array = NDArray[np.float64]

REUSED = "reused"  # of the new run directory
FULL_SIZE = "full_size"  # of a run directory: what its mixture's full-size trainings lost, one folder each
WEIGHTS = "weights"  # of proxies: the SHA-256 of what a pretrained one began from
ROLES = ("design", "verify", "sweep")  # whose losses on search rows tell of a mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRun:
    """One run as it was drawn."""

    id: str  # of the search that made it
    rows: tuple[int, ...]  # rows drawn of each domain of that search's record
    seed: int  # of its draws
    weights: str  # where its weights lie; "" where they were not kept
    tokens: int  # it was trained on
    seconds: float  # it took


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Package:
    """One earlier search."""

    name: str  # its run directory, as users know it
    record: RowRecord  # its rows by content
    runs: tuple[EarlierRun, ...]  # R runs
    keys: NDArray[np.uint64]  # (N,) of reference rows, rising
    loss_sum: Array  # (R, N) nats; NaN where a run was not judged on a row
    tokens: Array  # (N,) supervised tokens of each row
    before: Array  # (N,) nats before any SFT row; NaN where that is not known
    proxies: Mapping[str, Any]  # size, model and rank of its proxies, or `full`, the model of a full-size training

    def losses_before(self, keys: NDArray[np.uint64]) -> float:
        """Nats per supervised token of these rows before any SFT row; NaN where a row is missing."""
        whole = replace(self, loss_sum=self.before[None], runs=self.runs[:1])
        return float(whole.losses(keys)[0])

    def losses(self, keys: NDArray[np.uint64]) -> Array:
        """Nats per supervised token of every run on these rows, (R,); NaN where a row is missing."""
        if not len(self.keys) or not len(keys):
            return np.full(len(self.runs), np.nan)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[place] == keys
        sums = np.where(known, self.loss_sum[:, place], np.nan).sum(axis=1)
        return np.asarray(sums / self.tokens[place].sum())

    @property
    def identity(self) -> str:
        """A hash of the rows it drew from: equal for one search that was passed on twice."""
        digest = hashlib.sha256()
        for keys in (*self.record.pools, *self.record.reserved):
            digest.update(keys.tobytes())
        if "full" in self.proxies:
            digest.update(" ".join(run.id for run in self.runs).encode())
        return digest.hexdigest()[:16] + self.record.domains[0] + str(sorted(self.proxies.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """What a search takes from the first of the runs that it reuses, because its losses mean something only so."""

    run: str  # that run directory
    seed: int  # of the search
    fraction: float  # φ
    learning_rate: float  # of every run
    context: int  # longest row, tokens
    dtype: str  # of the products
    warm: str  # SHA-256 of the warm start's weights; "" for pretrained proxies
    seeds_of: int  # how many times fresh seeds were taken for a check before, so that the next ones are fresh too
    size: str  # of its scratch proxies; "" for pretrained ones
    lora_rank: int | None  # of its pretrained proxies
    asked_fraction: float | None  # φ in its run file; None where the plan chose


def read_packages(place: Path) -> list[Package]:
    """Read an earlier search as packages: its own runs, and those that it had reused itself."""
    run = run_folder(place)
    if not (run / "config.yaml").exists():
        raise UserError(f"--reuse {place}: no run directory; give the folder that `ideal-proxy search --out` made")
    if not (run / "rate.json").exists():
        raise UserError(f"--reuse {place}: that search has trained no mixture yet, so there is nothing to reuse")
    _refuse_other_keys(run)
    config, record = load_config(run / "config.yaml"), load_record(run / RECORD)
    base_model = read_json(run / "prepared" / "facts.json").get("base_model", {})
    smaller = base_model.get("lower", {})
    proxies, sizes = _with_weights(config, base_model), {size_name(size): size for size in config.swarm.sizes}
    found = list(_finished(run))
    own_package = _of_search(str(run), run, record, found, proxies)
    lower = [
        _of_search(
            str(run), place, load_record(place / RECORD), list(_finished(place)),
            _with_weights(settings_of(config, sizes[place.name]), smaller.get(sizes[place.name], {})),
        )
        for place in sorted(run.glob(f"{LOWER}/*")) if (place / "rate.json").exists() and place.name in sizes
    ]  # fmt: skip
    kept = [place for place in sorted(run.glob(f"{FULL_SIZE}/*")) if is_complete(place)]
    for place in (run, *kept):
        refuse_damaged(place)
    full = [load_package(place) for place in kept]
    judged: dict[str, list[Any]] = {}
    for r in found:
        if r.spec.role == JUDGED:
            judged.setdefault(r.spec.trained, []).extend(_search_losses(record, r))
    passed_on = [_with_judged(package, judged) for package in load_packages(run)]
    return [package for package in (own_package, *lower, *full, *passed_on) if package.runs]


def proxies_told(config: SearchConfig) -> dict[str, Any]:
    """Say what a search's proxies are, so that another search knows whether its own are the same."""
    told = {key: getattr(config.proxy, key) for key in ("size", "model", "gguf", "revision", "lora_rank")}
    return {key: value for key, value in told.items() if value is not None}


def _with_weights(config: SearchConfig, base_model: Mapping[str, Any]) -> dict[str, Any]:
    """Add what a pretrained proxy's weights were, for a folder may hold others by now."""
    return proxies_told(config) | ({WEIGHTS: base_model["fingerprint"]} if base_model else {})


def _of_search(name: str, folder: Path, record: RowRecord, found: Sequence[Run], proxies: Mapping[str, Any]) -> Package:
    """Make a package of the runs of one folder, at its learning rate."""
    rate = float(read_json(folder / "rate.json")["learning_rate"])
    own = [r for r in found if r.spec.role in ROLES and not r.spec.responses and r.spec.learning_rate == rate]
    start = [_search_losses(record, r) for r in found if r.spec.id in (WARM_RUN, ZERO_RUN)]
    told = [_search_losses(record, r) for r in own]
    return make_package(name, record, [_earlier(r) for r in own], told, start[0] if start else (), proxies)


def inherited_from(place: Path) -> Inherited:
    """Read what a new search takes over from an earlier one."""
    run = run_folder(place)
    config, plan = load_config(run / "config.yaml"), read_plan(run / "plan.json")
    facts = read_json(run / "prepared" / "facts.json")
    warm = run / "runs" / WARM_RUN / MODEL
    results = [read_json(path) for path in (run / "result.json", *run.glob("result-*.json")) if path.exists()]
    try:
        checks, context = [int(result["check"]["seeds_of"]) for result in results], int(facts["context"]["tokens"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{run} was written by another version of ideal-proxy (it lacks {error}), and its runs cannot be reused"
        ) from error
    return Inherited(
        run=str(run), seed=config.seed, fraction=plan.fraction,
        learning_rate=float(read_json(run / "rate.json")["learning_rate"]),
        context=context,
        dtype=plan.dtype, warm=hashlib.sha256(warm.read_bytes()).hexdigest() if warm.exists() else "",
        seeds_of=max(checks, default=-1) + 1, size=config.proxy.size or "", lora_rank=config.proxy.lora_rank,
        asked_fraction=config.proxy.fraction,
    )  # fmt: skip


def take_over(places: Sequence[str], folder: Path) -> tuple[Inherited, list[Package]]:
    """Copy what a search needs of earlier ones into its own folder, once, and read it from there."""
    target = folder / REUSED
    if not is_whole(target):
        shutil.rmtree(target, ignore_errors=True)
        first = run_folder(Path(places[0]))
        inherited = inherited_from(first)
        packages: list[Package] = []
        for place in places:
            other = inherited_from(Path(place))
            if other.warm != inherited.warm and other.size == inherited.size:
                raise UserError(
                    f"--reuse {place}: its proxies began from another warm start than those of {places[0]}, so their "
                    "losses cannot stand beside each other; reuse one of the two"
                )
            known = {package.identity for package in packages}
            packages += [package for package in read_packages(Path(place)) if package.identity not in known]
        for number, package in enumerate(packages):
            save_package(target / str(number), package)
        shutil.copytree(first / "prepared" / "tokenizer", target / "tokenizer")
        if inherited.warm:
            shutil.copyfile(first / "runs" / WARM_RUN / MODEL, target / WARM_WEIGHTS)
        atomic_write_json(target / "inherited.json", asdict(inherited))
        mark_complete(target)
    return Inherited(**read_json(target / "inherited.json")), load_packages(folder)


def load_packages(folder: Path) -> list[Package]:
    """Read the packages that a run directory holds."""
    target = folder / REUSED
    if not is_complete(target):
        return []
    numbers = sorted(int(path.name) for path in target.iterdir() if path.name.isdigit())
    return [load_package(target / str(number)) for number in numbers]


def save_package(folder: Path, package: Package) -> None:
    """Write one earlier search."""
    save_record(folder / RECORD, package.record)
    buffer = io.BytesIO()
    np.savez(buffer, keys=package.keys, loss_sum=package.loss_sum, tokens=package.tokens, before=package.before)
    atomic_write_bytes(folder / "losses.npz", buffer.getvalue())
    runs = [asdict(run) for run in package.runs]
    atomic_write_json(folder / "runs.json", {"name": package.name, "proxies": dict(package.proxies), "runs": runs})


def load_package(folder: Path) -> Package:
    """Read one earlier search."""
    told = read_json(folder / "runs.json")
    runs = tuple(EarlierRun(**(entry | {"rows": tuple(entry["rows"])})) for entry in told["runs"])
    try:
        with np.load(folder / "losses.npz", allow_pickle=False) as found:
            arrays = {name: found[name] for name in ("keys", "loss_sum", "tokens", "before")}
    except NO_ARRAYS as error:
        raise UserError(f"{folder / 'losses.npz'} is damaged ({error}); restore it, or search anew") from error
    return Package(name=told["name"], record=load_record(folder / RECORD), runs=runs, proxies=told["proxies"], **arrays)


def make_package(
    name: str,
    record: RowRecord,
    runs: Sequence[EarlierRun],
    told: Sequence[Sequence[tuple[Any, Any, Any]]],
    start: Sequence[tuple[Any, Any, Any]],
    proxies: Mapping[str, Any],
) -> Package:
    """Put losses of rows together by the rows' keys: for each run, and the start, keys, sums of loss and tokens."""
    every = [keys for run in told for keys, _, _ in run]
    keys = np.unique(np.concatenate(every)) if every else np.zeros(0, dtype=np.uint64)
    sums, tokens = np.full((len(runs), len(keys)), np.nan), np.zeros(len(keys))
    for r, run in enumerate(told):
        for row_keys, loss_sum, row_tokens in run:
            place = np.searchsorted(keys, row_keys)
            sums[r, place], tokens[place] = loss_sum, row_tokens
    before = np.full(len(keys), np.nan)
    for row_keys, loss_sum, _ in start if len(keys) else ():
        place = np.minimum(np.searchsorted(keys, row_keys), len(keys) - 1)
        known = keys[place] == row_keys
        before[place[known]] = np.asarray(loss_sum)[known]
    return Package(
        name=name, record=record, runs=tuple(runs), keys=keys, loss_sum=sums, tokens=tokens, before=before,
        proxies=proxies,
    )  # fmt: skip


def _search_losses(record: RowRecord, run: Run) -> list[tuple[Any, Any, Any]]:
    """Give keys, sums of loss and tokens of the search rows that a run was judged on; verify rows stay shut."""
    keys = dict(zip(record.references, record.reference_keys, strict=True))
    return [(keys[n], loss.loss_sum, loss.tokens) for n, loss in run.losses.items() if n.startswith("search-")]


def _with_judged(package: Package, judged: Mapping[str, Sequence[tuple[Any, Any, Any]]]) -> Package:
    """Add what runs that were passed on lost on rows that came later."""
    told = []
    for run, row in zip(package.runs, package.loss_sum, strict=True):
        known = np.isfinite(row)
        told.append([(package.keys[known], row[known], package.tokens[known]), *judged.get(run.id, ())])
    start = [(package.keys, package.before, package.tokens)]
    return make_package(package.name, package.record, package.runs, told, start, package.proxies)


def _finished(run: Path) -> Iterator[Run]:
    """Read the runs of a directory that are complete, in the order of their names."""
    for folder in sorted((run / "runs").iterdir()):
        if is_complete(folder):
            cleared = damaged_file(folder) == folder / MODEL and not (folder / MODEL).exists()
            if not cleared:  # weights may go, nothing else
                refuse_damaged(folder)
            yield load_result(run, folder.name)


def _earlier(run: Run) -> EarlierRun:
    weights = run.folder / MODEL
    return EarlierRun(
        id=run.spec.id, rows=run.spec.rows, seed=run.spec.seed,
        weights=str(weights.resolve()) if weights.exists() else "", tokens=int(run.metrics["tokens"]),
        seconds=run.seconds,
    )  # fmt: skip


def _refuse_other_keys(run: Path) -> None:
    """Refuse a run whose row keys are of another version: equal rows would not be known as equal."""
    version = load_record(run / RECORD).key_version
    if version != KEY_VERSION:
        wrote = read_json(run / "provenance.json")["versions"]["ideal-proxy"]
        raise UserError(
            f"--reuse {run}: written by ideal-proxy {wrote}, whose row keys (version {version}) are not today's "
            f"({KEY_VERSION}), so its rows cannot be told; search anew"
        )
