"""`search --reuse`: what earlier runs tell a search over changed data, what is missing, and how many runs that needs.

Legend: R runs, D domains, J capabilities, K retired domains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig, load_config
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.changes import Change, compare_domains, data_changed, move_runs
from ideal_proxy.pipeline.earlier_runs import (
    REUSED,
    WEIGHTS,
    Inherited,
    Package,
    inherited_from,
    proxies_told,
    take_over,
)
from ideal_proxy.pipeline.plan import Wanted
from ideal_proxy.pipeline.plan_cost import scaled_rate
from ideal_proxy.pipeline.prepare import Prepared, load_template
from ideal_proxy.pipeline.row_record import Heritage
from ideal_proxy.response import LARGER_SIZE, OTHER_SIZE, SAME_FRACTION, EvidenceKind, between_sizes
from ideal_proxy.sections import SIZES
from ideal_proxy.store import is_whole, read_json, run_folder
from ideal_proxy.swarm import JUDGED, MODEL, RunSpec
from ideal_proxy.terminal import count_text

Array = NDArray[np.float64]

LEAST_KEPT = 0.1  # of the rows that earlier runs drew: with fewer in the new domains they tell of other data
RUNS_FOR = {"added": 3, "split": 2, "grown": 1, "filtered": 1, "refilled": 2}  # for each domain that they made
GROWN = 0.2  # of its old rows: a domain that grew by less is taken to be what it was
POOR_TOKENIZER = 0.6  # bytes of a token of a new domain, against those of the others
# What `ReusedRuns` holds of every run.
TEXTS, NUMBERS = ("ids", "origin", "labels", "weights", "kind_of"), ("volumes", "losses", "seeds", "tokens", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReusedRuns:
    """Earlier runs as evidence of a new search."""

    ids: tuple[str, ...]  # R ids, which no run of the new search has
    origin: tuple[str, ...]  # the run directory of each, (R,)
    volumes: Array  # full-size rows of the new domains, (R, D)
    retired: tuple[str, ...]  # K names
    retired_volumes: Array  # (R, K) rows of domains that are no more
    retired_available: Array  # (K,) rows that they had
    losses: Array  # (R, J) nats on the new search rows; NaN where a run was not judged on them
    seeds: NDArray[np.int64]  # (R,)
    labels: tuple[str, ...]  # (R,) equal for runs of one mixture
    weights: tuple[str, ...]  # (R,) files; "" where there is none
    tokens: NDArray[np.int64]  # (R,) trained on, by the search that made them
    seconds: Array  # (R,) that took
    # (R,) their origin where the data changed since or their proxies have another size, else ""
    kind_of: tuple[str, ...]
    # of the kinds that are proxies of another size, the losses before any SFT row, (J,) nats
    sizes: Mapping[str, Array] = field(default_factory=dict)
    kinds: Mapping[str, EvidenceKind] = field(default_factory=dict)  # what is believed of those

    def to_judge(self) -> list[int]:
        """Number the runs that were not judged on all of the new reference rows, and whose weights are there."""
        lacking = np.isnan(self.losses).any(axis=1)
        return [r for r in np.flatnonzero(lacking).tolist() if self.weights[r] and Path(self.weights[r]).is_file()]

    def judged_specs(self, references: Sequence[str]) -> dict[int, RunSpec]:
        """Describe the judging of stored weights, by the number of the run."""
        nothing = (0,) * self.volumes.shape[1]
        return {
            r: RunSpec(
                id=_judged_id(self.ids[r]), rows=nothing, volumes=nothing,
                seed=int(self.seeds[r]), role=JUDGED, learning_rate=0.0, references=tuple(references),
                trained=self.ids[r].rpartition(":")[2],
            )
            for r in self.to_judge()
        }  # fmt: skip

    def with_losses(self, found: dict[int, Array]) -> ReusedRuns:
        """Fill in what judged runs lost."""
        losses = self.losses.copy()
        for r, values in found.items():
            losses[r] = np.where(np.isnan(losses[r]), values, losses[r])
        return replace(self, losses=losses)

    def told(self) -> ReusedRuns:
        """Leave out the runs that tell of no capability."""
        keep = np.flatnonzero(np.isfinite(self.losses).any(axis=1))
        texts: dict[str, Any] = {name: tuple(getattr(self, name)[r] for r in keep) for name in TEXTS}
        return replace(self, **texts, **{name: getattr(self, name)[keep] for name in (*NUMBERS, "retired_volumes")})

    def beside(self, others: ReusedRuns | None) -> ReusedRuns:
        """Put runs without retired domains after others."""
        if others is None:
            return self
        nothing = np.zeros((len(self.ids), len(others.retired)))
        part: dict[str, Any] = {name: (*getattr(others, name), *getattr(self, name)) for name in TEXTS}
        part |= {name: np.concatenate([getattr(others, name), getattr(self, name)]) for name in NUMBERS}
        return replace(
            others, **part, retired_volumes=np.concatenate([others.retired_volumes, nothing]),
            sizes={**others.sizes, **self.sizes}, kinds={**others.kinds, **self.kinds},
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reuse:
    """What a search makes of earlier ones."""

    inherited: Inherited  # what it takes over
    packages: tuple[Package, ...]  # the earlier searches
    runs: ReusedRuns  # their runs as evidence
    changes: tuple[Change, ...]  # of the domains, against the first of them
    kept: tuple[float, ...]  # for each package the share of the rows that its runs drew that belongs to a new domain
    known: tuple[int, ...]  # for each capability how many runs were judged on its rows before
    judged: int  # runs to judge by their weights
    needed: int  # new runs of the first round
    fresh: int  # proxies of the first round of a search without reuse
    notes: tuple[str, ...] = ()  # what else to know
    warms: bool = False  # whether scratch proxies of this size need a warm start of their own

    @property
    def wanted(self) -> Wanted:
        """What the plan needs of it."""
        return Wanted(self.needed, self.judged, self.fresh, self.warms)

    def to_json(self) -> dict[str, Any]:
        """Say which evidence is whose."""
        return {
            "runs": [
                {"from": p.name, "runs": len(p.runs), "rows_kept": k}
                for p, k in zip(self.packages, self.kept, strict=True)
            ],
            "changes": [str(change) for change in self.changes],
            "retired": list(self.runs.retired),
            "judged": self.judged, "new_runs": self.needed, "fresh_runs": self.fresh,
            "tokens_reused": int(self.runs.tokens.sum()), "seconds_reused": float(self.runs.seconds.sum()),
        }  # fmt: skip

    def lines(self, names: Sequence[str], *, search: bool = True) -> Iterator[str]:
        """Say what carries over, what is missing, and what a search costs, a line each; J names of capabilities."""
        for package, kept in zip(self.packages, self.kept, strict=True):
            counted = count_text(len(package.runs), "run")
            yield f"reuse {package.name}: {counted}, {kept:.0%} of the rows they drew are in today's domains"
        same = [c for c in self.changes if c.kind == "same"]
        if same:
            yield f"{', '.join(c.new[0] for c in same)}: the same rows"
        yield from (str(change) for change in self.changes if change.kind != "same")
        if self.runs.retired:
            yield f"{', '.join(self.runs.retired)}: known to the fit, proposed no more"
        total = len(self.runs.ids)
        carried = [name for name, count in zip(names, self.known, strict=True) if count == total]
        if carried:
            yield f"reference rows of {', '.join(carried)}: judged before by {'all' if total > 1 else 'the'} runs"
        for name, count in zip(names, self.known, strict=True):
            if count < total:
                yield f"reference rows of {name}: " + self._what_is_missing(total, count)
        start = "tokenizer, warm start and its loss, " if self.inherited.warm else ""
        start = "tokenizer, the warm start's rows, " if self.warms else start
        yield (
            f"inherited: {start}learning rate {self.inherited.learning_rate:g}, fraction {self.inherited.fraction:g}, "
            f"context {self.inherited.context}, seed {self.inherited.seed}, the split of the reference rows"
        )
        yield from self.notes
        if not search:
            return
        if not self.needed:
            yield f"no new run is needed but for the check; a fresh search has {self.fresh} in its first round"
        else:
            yield (
                f"{count_text(self.needed, 'new run')} and the check, where a fresh search has {self.fresh} and a "
                f"sweep of the learning rate ({self.needed / self.fresh:.0%})"
            )

    def _what_is_missing(self, total: int, count: int) -> str:
        weights = min(self.judged, total - count)
        told = f"{weights} of {total} runs are judged on them by their stored weights, without training"
        left = total - count - weights
        if not left:
            return told
        lacking = f"{left} of {total} runs kept no weights and tell nothing of it; it is learned from the new runs"
        return f"{told}; {lacking}" if weights else lacking


def _judged_id(run: str) -> str:
    """Name the folder in which an earlier run is judged."""
    return hashlib.sha256(f"judged {run}".encode()).hexdigest()[:16]


def inherited_config(config: SearchConfig, folder: Path) -> SearchConfig:
    """Give a run file with `reuse` what it takes over; refuse earlier searches whose losses mean something else."""
    if not config.reuse:
        return config
    kept = folder / REUSED / "inherited.json"
    if is_whole(kept.parent):
        found = Inherited(**read_json(kept))
    else:
        for place in config.reuse:
            if not (run_folder(Path(place)) / "config.yaml").exists():
                raise UserError(f"--reuse {place}: no run directory; give the folder that `ideal-proxy search` made")
            _refuse_other_proxies(config, place)
        found = inherited_from(Path(config.reuse[0]))
    judged = [c.name for c in config.capabilities if c.metric is not None]
    if judged:
        raise UserError(f"--reuse: {judged[0]} is judged by a metric, and earlier runs cannot be judged by it anew")
    asked, size = config.proxy, config.proxy.size or ""
    rate: float | None = found.learning_rate
    other = size != found.size or asked.lora_rank != found.lora_rank
    if other:
        usual = scaled_rate(found.learning_rate, found.size, size) if size and found.size else None
        rate = asked.learning_rate or usual
    own_fraction = asked.fraction is not None and asked.fraction != found.asked_fraction
    proxy = asked.model_copy(update={
        "fraction": asked.fraction if own_fraction else found.fraction, "learning_rate": rate,
        "context": found.context, "dtype": asked.dtype if other else found.dtype,
    })  # fmt: skip
    return config.model_copy(update={"proxy": proxy, "seed": found.seed, "gradients": "none"})


def _refuse_other_proxies(config: SearchConfig, place: str) -> None:
    """Refuse runs whose proxies, tokenizer or loss are not those of the run file."""
    before = load_config(run_folder(Path(place)) / "config.yaml")
    keys = ("vocabulary", "model", "gguf", "revision")
    pairs = [(f"proxy.{key}", getattr(before.proxy, key), getattr(config.proxy, key)) for key in keys]
    pairs += [(key, getattr(before, key), getattr(config, key)) for key in ("loss", "batch")]
    for key, old, new in pairs:
        if old != new:
            was, now = ("none" if value is None else str(value).strip() for value in (old, new))
            raise UserError(
                f"--reuse {place}: its {key} is {was} and this run file's {now}, so the losses of its "
                f"runs cannot stand beside new ones; give {key} as there, or search without --reuse"
            )


def open_heritage(config: SearchConfig, folder: Path) -> tuple[Inherited, list[Package], Heritage] | None:
    """Copy what earlier searches left, once, and say what the preparation needs of it."""
    if not config.reuse:
        return None
    inherited, packages = take_over(config.reuse, folder)
    if not packages:
        raise UserError(f"--reuse {', '.join(config.reuse)}: no finished run of a mixture is there to reuse")
    records = [package.record for package in packages]
    reserved = [keys for record in records for keys in record.reserved]
    heritage = Heritage(
        folder=folder / REUSED, warm=inherited.warm, reserved=np.unique(np.concatenate(reserved)),
        search=np.unique(np.concatenate([record.half("search") for record in records])),
        verify=np.unique(np.concatenate([record.half("verify") for record in records])), size=inherited.size,
    )  # fmt: skip
    return inherited, packages, heritage


def make_reuse(
    config: SearchConfig, prepared: Prepared, inherited: Inherited, packages: Sequence[Package], folder: Path
) -> Reuse:
    """Compare earlier searches with prepared data, and count what is missing, for a search in a folder."""
    keys = [np.array(prepared.domain_rows(i).keys) for i in range(len(prepared.facts))]
    names = prepared.domains.names
    changes = compare_domains(packages[0].record, names, keys)
    references = [np.array(prepared.reference_rows(j, "search").keys) for j in range(len(prepared.capabilities))]
    _refuse_other_weights(config, prepared, packages)
    kinds = [_other_proxies(package, config) for package in packages]
    runs, kept = reused_runs(packages, names, keys, references, folder, kinds)
    runs = replace(runs, kinds={k: _believed(p, config) for k, p in zip(kinds, packages, strict=True) if k})
    for package, share in zip(packages, kept, strict=True):
        if share < LEAST_KEPT:
            raise UserError(
                f"--reuse {package.name}: only {share:.0%} of the rows that its runs drew are in this run file's "
                f"domains, and under {LEAST_KEPT:.0%} they tell of other data; search without it"
            )
    fresh = 3 * (len(names) + 1)
    known = tuple(int(n) for n in np.isfinite(runs.losses).sum(axis=0))
    judged = len(runs.to_judge())
    lacking = [
        name for name, count in zip(prepared.capability_names, known, strict=True)
        if count + judged < max(len(runs.ids) // 2, 1)
    ]  # fmt: skip
    unknown = bool(lacking) or all(kinds)  # of other proxies alone nothing says how much these show
    needed = config.swarm.runs or runs_needed(changes, len(names), unknown=unknown)
    return Reuse(
        inherited=inherited, packages=tuple(packages), runs=runs, changes=tuple(changes), kept=tuple(kept),
        known=known, judged=judged, needed=min(needed, fresh) if config.swarm.runs is None else needed, fresh=fresh,
        notes=(
            *(f"{kind}: expected to show {belief} of every change" for kind, belief in runs.kinds.items()),
            *_poor_tokenizer(prepared, changes, fresh),
        ),
        warms=bool(config.proxy.size) and inherited.size != config.proxy.size,
    )  # fmt: skip


def _refuse_other_weights(config: SearchConfig, prepared: Prepared, packages: Sequence[Package]) -> None:
    """Refuse runs of a model whose folder held other weights then."""
    weights = str(prepared.base_model.get("fingerprint", ""))
    for package in packages:
        before = package.proxies.get(WEIGHTS, weights)
        if package.proxies.get("model") == config.proxy.model and before != weights:
            raise UserError(
                f"--reuse {package.name}: its runs began from other weights of {config.proxy.model} ({before[:12]}… "
                f"where there are {weights[:12]}… today), so they say nothing of this model; give that model again, "
                "or search without --reuse"
            )


def _other_proxies(package: Package, config: SearchConfig) -> str:
    """Name the kind of a package whose proxies are not this search's; "" where they are."""
    told = {key: value for key, value in package.proxies.items() if key != WEIGHTS}
    own = proxies_told(config)
    if "full" in told:
        return f"full-size runs of {told['full']}"
    if told != own:
        what = told.get("size") or f"{told.get('model')} (LoRA {told.get('lora_rank', 'none')})"
        return f"{what} proxies of {package.name}"
    if config.proxy.fraction and abs(package.record.fraction / config.proxy.fraction - 1.0) > SAME_FRACTION:
        return f"proxies on {package.record.fraction:.0%} of the rows of {package.name}"
    return ""


def _believed(package: Package, config: SearchConfig) -> EvidenceKind:
    """Say how much runs of other proxies are expected to show of a change, by which of the two are the larger ones."""
    told, own = package.proxies, proxies_told(config)
    if "full" in told:
        same = str(own.get("model", "")).rstrip("/").rsplit("/", 1)[-1] == told["full"]
        return OTHER_SIZE if same else LARGER_SIZE
    runs, target = told.get("size"), own.get("size")
    if runs == target or runs not in SIZES or target not in SIZES:
        return OTHER_SIZE
    return between_sizes(runs, target)


def runs_needed(changes: Sequence[Change], domains: int, *, unknown: bool) -> int:
    """Count the new runs that changed data ask for: base, and some for each domain that no run has told of."""
    count = 0
    for change in changes:
        if change.kind == "split":
            count += RUNS_FOR["split"] * (len(change.new) - 1)
        elif change.kind != "grown" or change.gained > GROWN * change.kept:
            count += RUNS_FOR.get(change.kind, 0)
    count += data_changed(changes)
    return max(count, domains + 1) if unknown else count


def reused_runs(
    packages: Sequence[Package],
    names: Sequence[str],
    keys: Sequence[NDArray[np.uint64]],
    references: Sequence[NDArray[np.uint64]],
    folder: Path,
    kinds: Sequence[str] = (),
) -> tuple[ReusedRuns, list[float]]:
    """Bring the runs of all packages to new domains (names and keys) and capabilities (keys of their search rows)."""
    moved = [move_runs(package, keys) for package in packages]
    retired = list(dict.fromkeys(name for part in moved for name in part.retired))
    gone, available = [], np.zeros(len(retired))
    for part in moved:
        wide = np.zeros((len(part.volumes), len(retired)))
        for k, name in enumerate(part.retired):
            at = retired.index(name)
            wide[:, at] = part.retired_volumes[:, k]
            available[at] = max(available[at], part.retired_available[k])
        gone.append(wide)
    every = [(package, run) for package in packages for run in package.runs]
    changed = {id(package): data_changed(compare_domains(package.record, names, keys)) for package in packages}
    number = {id(package): n for n, package in enumerate(packages)}
    other = {id(package): kind for package, kind in zip(packages, kinds, strict=False) if kind}
    sizes = {
        other[id(p)]: np.array([p.losses_before(k) for k in references]) for p in reversed(packages) if id(p) in other
    }
    ids = tuple(f"reused{number[id(package)]}:{run.id}" for package, run in every)
    placed = [folder / "runs" / _judged_id(name) / MODEL for name in ids]  # where they were judged before a stop
    return ReusedRuns(
        ids=ids,
        origin=tuple(other.get(id(package), package.name) for package, _ in every), sizes=sizes,
        volumes=np.concatenate([part.volumes for part in moved]),
        retired=tuple(retired), retired_volumes=np.concatenate(gone), retired_available=available,
        losses=np.concatenate([np.column_stack([p.losses(k) for k in references]) for p in packages]),
        seeds=np.array([run.seed for _, run in every], dtype=np.int64),
        labels=tuple(f"{number[id(package)]}:{run.rows}" for package, run in every),
        weights=tuple(
            "" if id(package) in other else str(at) if at.exists() else run.weights
            for at, (package, run) in zip(placed, every, strict=True)
        ),
        tokens=np.array([run.tokens for _, run in every], dtype=np.int64),
        seconds=np.array([run.seconds for _, run in every]),
        kind_of=tuple(
            other.get(id(package)) or (package.name if changed[id(package)] else "") for package, _ in every
        ),
    ), [part.kept for part in moved]  # fmt: skip


def _poor_tokenizer(prepared: Prepared, changes: Sequence[Change], fresh: int) -> Iterator[str]:
    """Warn of new domains that the inherited tokenizer cuts into far more pieces, as of a language it never saw."""
    added = {name for change in changes if change.kind == "added" for name in change.new}
    if not added or len(added) == len(prepared.facts):
        return
    tokenizer = load_template(prepared.folder / "tokenizer").tokenizer
    sizes = {}
    for i, facts in enumerate(prepared.facts):
        rows = prepared.domain_rows(i)
        ids = np.asarray(rows.ids[: rows.offsets[min(len(rows), 200)]])
        sizes[facts.name] = len(tokenizer.decode(ids.tolist()).encode()) / max(len(ids), 1)
    usual = float(np.median([size for name, size in sizes.items() if name not in added]))
    for name in sorted(added):
        if sizes[name] < POOR_TOKENIZER * usual:
            yield (
                f"warning: the inherited tokenizer needs {usual / sizes[name]:.1f} times as many tokens for {name} as "
                f"for the other domains, and the warm start never saw it; a fresh start costs {fresh} runs and a sweep"
            )
