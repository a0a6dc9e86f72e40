"""Several finished searches over the same rows, at two or more proxy sizes or budgets, as one law at full size.

Legend: R runs, D domains, J capabilities, K scales (parameters, share of the volumes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.errors import UsageError
from ideal_proxy.mixture import MixtureFile
from ideal_proxy.pipeline import SearchRun
from ideal_proxy.scaleup.size_law import RankAgreement, SizeLaw, SizeSurface, rank_agreement

Array = NDArray[np.float64]
SCALES = ("parameters", "share of the volumes")


@dataclass(frozen=True, slots=True)
class Swarms:
    """The law across the scales of several searches."""

    law: SizeLaw  # fitted to all searches
    scale: tuple[float, ...]  # (K,) of the full-size run
    agreement: tuple[RankAgreement, ...]  # how far neighbouring scales rank mixtures alike
    notes: tuple[str, ...]  # what a user must know

    def at(self, available: Array) -> SizeSurface:
        """Give the law at full size."""
        return self.law.at(self.scale, available=available)


def law_across(
    runs: Sequence[SearchRun],
    mixture: MixtureFile,
    *,
    parameters: float | None,
    random_state: int = 0,
) -> Swarms:
    """Fit how the law moves with proxy size and budget, and carry it to the full size and all of the volumes."""
    names = [d.name for d in mixture.domains]
    targets = [c.name for c in mixture.capabilities]
    for run in runs:
        _check_same(run, mixture, names, targets)
    tables = [_table(run, names, targets) for run in runs]
    V, L = (np.concatenate([part[k] for part in tables]) for k in (0, 1))
    counts = [len(part[0]) for part in tables]
    here = np.array([
        [run.plan.get("parameters") or run.result["proxy"]["parameters"], run.plan["fraction"]] for run in runs
    ])
    moving = [k for k in range(2) if len(np.unique(here[:, k])) > 1]
    if not moving:
        raise UsageError(
            "the searches given with --swarm have one proxy size and one share; give two or more of either"
        )
    if 0 in moving and parameters is None:
        raise UsageError("the searches differ in proxy size, so --parameters of the full-size model is needed")
    scales = np.repeat(here[:, moving].astype(float), counts, axis=0)
    law = SizeLaw(available=mixture.over.supply, base=mixture.over.base, random_state=random_state)
    law.fit(V, L, scales)
    target = [float(parameters) if k == 0 and parameters else 1.0 for k in moving]
    notes = [_distance(SCALES[k], here[:, k], goal) for k, goal in zip(moving, target, strict=True)]
    if len(moving) == 2 and np.linalg.matrix_rank(np.log(here) - np.log(here).mean(axis=0)) < 2:
        notes.append("size and share change together in these searches, so only the prior tells their effects apart")
    agreement = tuple(rank_agreement(V, L, scales[:, 0])) or tuple(
        _by_laws(runs, V, (names, targets), here[:, moving[0]])
    )
    notes += [entry.sentence(targets) for entry in agreement]
    if not all(entry.agrees for entry in agreement):
        notes.append("sizes that disagree on the ranking make any transfer doubtful; compare at a larger size first")
    return Swarms(law, tuple(target), agreement, tuple(notes))


def read_size(text: str | None) -> float | None:
    """Read a model size such as `135M`, `0.5B` or `124000000`."""
    if text is None:
        return None
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper())
    try:
        value = float(text[:-1] if factor else text) * (factor or 1.0)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"--parameters is {text!r}; give a number such as 135M, 0.5B or 124000000")
    return value


def _check_same(run: SearchRun, mixture: MixtureFile, names: list[str], targets: list[str]) -> None:
    """Refuse a search over other rows or capabilities."""
    if sorted(run.domains) != sorted(names) or sorted(run.capabilities) != sorted(targets):
        raise UsageError(
            f"{run.folder} searched other domains or capabilities than the mixture file names; give searches over "
            "the same"
        )
    searched = {d.name: d.fingerprint for d in run.prepared.facts}
    for domain in mixture.domains:
        if searched[domain.name] != domain.fingerprint:
            raise UsageError(
                f"{run.folder} searched other rows of {domain.name} than the mixture file; their losses cannot be "
                "compared"
            )


def _table(run: SearchRun, names: list[str], targets: list[str]) -> tuple[Array, Array]:
    """Volumes (R, D) and losses on the search rows (R, J) of a search's swarm, in the mixture file's order."""
    design = run.runs[run.runs["role"] == "design"]
    losses = design[[f"search_loss/{name}" for name in targets]].to_numpy(dtype=float)
    whole = np.isfinite(losses).all(axis=1)
    return design[[f"rows/{name}" for name in names]].to_numpy(dtype=float)[whole], losses[whole]


def _distance(what: str, here: Array, goal: float) -> str:
    far = goal / here.max() if goal > here.max() else here.min() / goal
    span = f"the searches ({here.min():.3g} to {here.max():.3g})"
    return f"{what}: {goal:.3g} " + (f"lies within {span}" if far <= 1 else f"is {far:.3g} times outside {span}")


def _by_laws(
    runs: Sequence[SearchRun], V: Array, named: tuple[list[str], list[str]], sizes: Array
) -> list[RankAgreement]:
    """Compare what each search's own law says of all mixtures, where the searches tried different ones."""
    mixtures = np.unique(V, axis=0)
    predicted = []
    for run in runs:
        order = [named[0].index(name) for name in run.domains]
        losses = np.stack([run.model.value_and_gradient(v[order])[0] for v in mixtures])
        predicted.append(losses[:, [run.capabilities.index(name) for name in named[1]]])
    return rank_agreement(
        np.tile(mixtures, (len(runs), 1)), np.concatenate(predicted), np.repeat(sizes, len(mixtures)), by_laws=True
    )
