"""Where new runs tell most beside earlier ones: fit what is known, and take the mixtures that it knows least.

Legend: R runs, P candidates, J capabilities, S posterior draws.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.pipeline.evidence import Evidence
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.proposal import fit_response
from ideal_proxy.pipeline.reuse import ReusedRuns
from ideal_proxy.response import ResponseModel

Array = NDArray[np.float64]

LEAST_RUNS = 6  # of one level: fewer place no others


def with_reused(own: Evidence, reused: ReusedRuns) -> Evidence:
    """Put earlier runs before a search's own."""
    nothing = np.zeros((len(own.ids), len(reused.retired)))
    losses, values, volumes = (
        np.concatenate([reused_part, part])
        for reused_part, part in (
            (reused.losses, own.losses), (reused.losses, own.values), (reused.volumes, own.volumes),
        )
    )  # fmt: skip
    return replace(
        own, ids=(*reused.ids, *own.ids), losses=losses, values=values, volumes=volumes,
        seeds=np.concatenate([reused.seeds, own.seeds]), retired=reused.retired,
        retired_volumes=np.concatenate([reused.retired_volumes, nothing]),
        retired_available=reused.retired_available,
        labels=(*reused.labels, *(str(v.tolist()) for v in own.volumes)),
        kind_of=(*reused.kind_of, *[""] * len(own.ids)), sizes=reused.sizes, kinds={**own.kinds, **reused.kinds},
    )  # fmt: skip


def fit_known(evidence: Evidence, prepared: Prepared, seed: int) -> ResponseModel | None:
    """Fit the losses of the capabilities that any run tells of; None where there is none."""
    evidence = _of_one_level(evidence)
    known = np.isfinite(evidence.losses).any(axis=0)
    if not known.any():
        return None
    seen = np.flatnonzero(known).tolist()
    part = replace(
        evidence, losses=evidence.losses[:, seen], values=evidence.values[:, seen],
        losses_before=evidence.losses_before[seen], values_before=evidence.values_before[seen],
        kind_of=(), own=None if evidence.own is None else tuple(evidence.own[j] for j in seen),
    )  # fmt: skip
    capabilities = tuple(prepared.capabilities[j] for j in seen)
    return fit_response(part, replace(prepared, capabilities=capabilities), seed)[0]


def _of_one_level(evidence: Evidence) -> Evidence:
    """Keep the runs whose losses have the target's level; where there are none, those of the last size beside it."""
    if not evidence.sizes:
        return evidence
    place = np.array(evidence.kind_of, dtype=object)
    keep = ~np.isin(place, list(evidence.sizes))
    before = evidence.losses_before
    if keep.sum() < LEAST_RUNS:
        last = max(
            evidence.sizes, key=lambda name: (int((place == name).sum()) >= LEAST_RUNS, place.tolist().index(name))
        )
        keep, before = place == last, evidence.sizes[last]
    at = np.flatnonzero(keep)
    gone = evidence.retired_volumes
    return replace(
        evidence, ids=tuple(evidence.ids[r] for r in at), volumes=evidence.volumes[at], losses=evidence.losses[at],
        values=evidence.values[at], seeds=evidence.seeds[at], losses_before=before, values_before=before,
        retired_volumes=None if gone is None else gone[at], sizes={},
        labels=tuple(evidence.labels[r] for r in at) if evidence.labels else (),
    )  # fmt: skip


def least_known(model: ResponseModel, candidates: Array, count: int) -> NDArray[np.int64]:
    """Choose candidates, the first and then each where a run would tell most after those before it."""
    # How far the posterior draws disagree is measured against the noise of a run; after each choice the draws are taken
    # to have seen it (Gaussian conditioning), so that no two runs ask the same question.
    draws_PSJ = np.array([model.draws_value_and_gradient(v)[0] for v in candidates])
    noise_J = np.maximum(np.asarray(model.residual_scale_, dtype=float), 1e-12)
    unit_JPS = ((draws_PSJ - draws_PSJ.mean(axis=1, keepdims=True)) / noise_J).transpose(2, 0, 1)
    covariance_JPP = unit_JPS @ unit_JPS.transpose(0, 2, 1) / max(unit_JPS.shape[2] - 1, 1)
    chosen = [0]
    while True:
        at = chosen[-1]
        column_JP = covariance_JPP[:, :, at]
        covariance_JPP = covariance_JPP - (
            column_JP[:, :, None] * column_JP[:, None, :] / (1.0 + covariance_JPP[:, at, at])[:, None, None]
        )
        if len(chosen) >= min(count, len(candidates)):
            return np.array(chosen)
        told_P = np.log1p(np.maximum(np.einsum("jpp->jp", covariance_JPP), 0.0)).sum(axis=0)
        told_P[chosen] = -np.inf
        chosen.append(int(told_P.argmax()))
