"""What a fit learns from: the finished runs of a search as one table, and responses measured by gradients.

Legend: R runs, D domains, J capabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.sequential import Spread
from ideal_proxy.pipeline.verdict import Known
from ideal_proxy.response import (
    CHANGED_DATA,
    Combination,
    EvidenceKind,
    ResponseModel,
    Responses,
    Yardstick,
    combine,
    fit_kinds,
    imitated,
    told_trusts,
)
from ideal_proxy.sections import CapabilityConfig
from ideal_proxy.swarm import RunSpec

IMITATIONS = "imitations"  # the kind's name, as users meet it
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Finished runs in numbers, and gradient rows beside them."""

    ids: tuple[str, ...]  # R run ids
    volumes: Array  # rows in full-size terms, shape (R, D)
    losses: Array  # reference losses on the search rows, nats per supervised token, shape (R, J)
    values: Array  # what each capability is judged by, shape (R, J): its metric, or the same loss
    seeds: NDArray[np.int64]  # seed of each run, shape (R,)
    losses_before: Array  # Z_j, the losses before any SFT row, shape (J,)
    values_before: Array  # what each capability is judged by there, shape (J,)
    gradients: tuple[Responses, ...] = ()  # responses measured by gradients, one entry a centre
    own: tuple[int, ...] | None = None  # number of each capability's own domain, -1 for none, (J,)
    retired: tuple[str, ...] = ()  # domains that reused runs had and no mixture can have any more, K names
    retired_volumes: Array | None = None  # (R, K) rows of them; None where there are none
    retired_available: Array | None = None  # (K,) rows that they had
    labels: tuple[str, ...] = ()  # (R,) equal for runs of one mixture; () where equal volumes say that
    # (R,) "" for the search's own runs, else the kind: whose they are, where data or size of the proxies changed
    # since; () without such
    kind_of: tuple[str, ...] = ()
    kinds: Mapping[str, EvidenceKind] = field(default_factory=dict)
    # of the kinds that are proxies of another size, the losses before any SFT row, (J,); NaN where not known
    sizes: Mapping[str, Array] = field(default_factory=dict)

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which of them were trained, (R,): all but imitations."""
        return np.array([name != IMITATIONS for name in self.kind_of or self.ids])

    def fit(self, model: ResponseModel, prepared: Prepared, *, weights: Array | None = None) -> ResponseModel:
        """Fit a model under the names that users know: of losses, or where it has kinds of what judges."""
        of_losses = isinstance(model.kind, str)
        volumes, names = self.volumes, [*prepared.domains.names]
        if self.retired_volumes is not None and self.retired_available is not None and self.retired:
            # U+001F cannot stand in a domain's name: a retired domain may have the name of one that came back.
            names += [f"{name}\x1fretired" for name in self.retired]
            volumes = np.concatenate([volumes, self.retired_volumes], axis=1)
            model.set_params(
                available=np.concatenate([model.available, self.retired_available]),
                base=np.concatenate([model.base, np.zeros(len(self.retired))]),
            )
        V = pd.DataFrame(volumes, columns=names)
        L = pd.DataFrame(self.losses if of_losses else self.values, columns=prepared.capability_names)
        options: dict[str, Any] = {
            "run_id": np.asarray(self.ids), "seed_id": self.seeds,
            "baseline_loss": self.losses_before if of_losses else self.values_before, "sample_weight": weights,
            "responses": list(self.gradients) or None, "own": self.own, "retired": len(self.retired),
        }  # fmt: skip
        if any(self.kind_of) and (of_losses or IMITATIONS in self.kinds):
            kinds = {name: self.kinds.get(name, CHANGED_DATA) for name in self.kind_of if name}
            fit_kinds(model, V, L, self.kind_of, kinds, self.sizes, **options)
            return model
        return model.fit(V, L, **options)

    def scatter(self, stick: Yardstick, base_J: Array, kind: Combination, weights: Sequence[float] | None) -> Known:
        """Estimate how much the difference of two mixtures scatters, from mixtures run with several seeds."""
        mixtures = np.array(self.labels) if self.labels else self.volumes
        _, mixture_R = np.unique(mixtures, axis=0, return_inverse=True)
        _, seed_R = np.unique(self.seeds, return_inverse=True)
        cells = np.isfinite(self.values).all(axis=1)
        cells &= self.trained
        if self.kind_of:  # proxies of another size scatter otherwise
            cells &= np.array([name not in self.sizes for name in self.kind_of])
        for group in (mixture_R.ravel(), seed_R):  # a mixture of one seed tells nothing of a difference
            cells &= np.bincount(group, weights=cells)[group] > 1
        dummies = [np.eye(group.max(initial=0) + 1)[group][cells] for group in (mixture_R.ravel(), seed_R)]
        table = np.concatenate(dummies, axis=1)
        degrees = len(table) - (int(np.linalg.matrix_rank(table)) if len(table) else 0)
        if not degrees:
            return Known()
        relative_RJ = stick.relative(self.values, base_J)[cells]
        both = np.column_stack([relative_RJ, combine(relative_RJ, kind, weights)])
        left = both - table @ np.linalg.lstsq(table, both, rcond=None)[0]
        variance = 2 * (left**2).sum(axis=0) / degrees
        return Known(Spread(variance[-1], degrees), Spread(variance[:-1], degrees))


def with_imitated(own: Evidence, specs: Sequence[RunSpec], losses: Array, values: Array, anchors: int) -> Evidence:
    """Put mixtures that were imitated after a search's own runs, as a kind."""
    if not specs:
        return own
    return replace(
        own, ids=(*own.ids, *(spec.id for spec in specs)),
        volumes=np.concatenate([own.volumes, np.array([spec.volumes for spec in specs], dtype=float)]),
        losses=np.concatenate([own.losses, losses]), values=np.concatenate([own.values, values]),
        seeds=np.concatenate([own.seeds, np.array([spec.seed for spec in specs], dtype=np.int64)]),
        kind_of=("",) * len(own.ids) + (IMITATIONS,) * len(specs), kinds={IMITATIONS: imitated(anchors)},
    )  # fmt: skip


def told_kinds(model: ResponseModel, capabilities: Sequence[str], *, imitations: bool = False) -> list[str]:
    """Say what the kinds in a fit were worth: those of earlier searches, or what was imitated."""
    fidelity = {name: told for name, told in model.fidelity_.items() if (name == IMITATIONS) == imitations}
    return told_trusts(fidelity, "trained runs" if imitations else "new runs", capabilities)


LEAST_DEGREES = 3  # of a metric's noise over seeds, before it is compared with the spread over mixtures


def noise_and_spread(values_R: Array, mixtures_R: NDArray[np.integer[Any]]) -> tuple[float, float, int]:
    """Part the scatter of a value into seeds and mixtures: standard deviations, and the degrees of freedom of seeds."""
    counts = np.bincount(mixtures_R)
    means = np.bincount(mixtures_R, weights=values_R) / counts
    degrees = int((counts - 1).sum())
    within = float(((values_R - means[mixtures_R]) ** 2).sum() / max(degrees, 1))
    between = float(means.var(ddof=1)) - within * float((1 / counts).mean()) if len(means) > 1 else 0.0
    return within**0.5, max(between, 0.0) ** 0.5, degrees


def refuse_poor_metrics(
    capabilities: Sequence[CapabilityConfig], runs: Sequence[str], rows: Sequence[Sequence[int]], values_RJ: Array
) -> None:
    """Refuse, by name, a metric that is missing, that never moves, or that seeds move more than mixtures do."""
    for r, j in np.argwhere(np.isnan(values_RJ)):
        raise UserError(
            f"run {runs[r]}: results.json of proxy.command reports no score of {capabilities[j].name}; write it under "
            '"scores": {"search": {...}, "verify": {...}}'
        )
    if not len(values_RJ):
        return
    mixtures = np.unique(np.array(rows), axis=0, return_inverse=True)[1].reshape(-1)
    for j, capability in enumerate(capabilities):
        if capability.metric is None:
            continue
        if np.ptp(values_RJ[:, j]) == 0:
            raise UserError(
                f"the metric of {capability.name} gave {values_RJ[0, j]:g} in all {len(values_RJ)} runs, so it can "
                "tell no mixture from another; give it easier items or partial credit, or larger proxies"
            )
        noise, spread, degrees = noise_and_spread(values_RJ[:, j], mixtures)
        if degrees >= LEAST_DEGREES and spread < noise and not capability.metric.noisy:
            raise UserError(
                f"the metric of {capability.name} says little of mixtures: between them it differs by {spread:.2g}, "
                f"between seeds of one by {noise:.2g}; judge more items, take a score with more signal (score: choice "
                "or loss), or its reference loss; metric.noisy: true goes on all the same"
            )
