"""A fitted response as JSON that a page computes with: predictions as in Python, and the draws behind their intervals.

What a point prediction needs is kept in full (float64); posterior draws as 16-bit steps from the point's parameters.

Legend: D domains, J capabilities, S posterior draws, R runs, K kernels.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from ideal_proxy.report.curves import Array
from ideal_proxy.response import (
    LEVEL,
    ON_LAW,
    SHIFT,
    Combination,
    ResponseModel,
    Yardstick,
    combine,
    directions,
    worst_noise,
)

DRAW_BYTES = 440_000
"""What the draws of all capabilities may weigh; where all weigh more, the first so many are taken."""
LEAST_DRAWS = 16
"""With fewer an interval says little, so that there is no explorer."""
STEPS = 32_767


def comparison(
    model: ResponseModel,
    base: Array,
    *,
    pairs: int,
    kind: Combination = "mean",
    weights: Sequence[float] | Array | None = None,
    yardstick: Yardstick | None = None,
) -> dict[str, Any]:
    """Give everything that `compare` of any mixture with base is computed from."""
    J = len(model.theta_)
    stick, together_JJ = yardstick or Yardstick.of_losses(J), model.correlation_
    return {
        "model": _surface(model),
        "base": base.tolist(),
        "signs": directions(stick.kinds).tolist(),
        "scale": [None if loss else float(x) for loss, x in zip(stick.is_loss, stick.scale, strict=True)],
        "z": float(norm.ppf(0.5 + LEVEL / 2)),
        "run": (np.asarray(model.residual_scale_, dtype=float) * np.sqrt(2 / pairs)).tolist(),
        "weights": None if kind == "worst" else combine(np.eye(J), kind, weights).tolist(),
        "together": together_JJ.tolist(),
        "noise": doubles(worst_noise(together_JJ)) if kind == "worst" else None,
    }


def _surface(model: ResponseModel) -> dict[str, Any]:
    used = [(c, j, p) for c, found in model.processes_.items() for j, p in found.items() if model.weights_[j, c]]
    form_SJ = model.weight_draws_.argmax(axis=2)
    a_draw = 8 / 3 * (model.theta_.size + sum(model.weights_[j, c] * len(p.beta_R) for c, j, p in used))
    count = min(len(form_SJ), int(DRAW_BYTES / a_draw))
    form_SJ = form_SJ[:count]
    kernels: list[dict[str, Any]] = []
    processes = []
    for c, j, process in used:
        k = process.kernel
        kernel = {
            "shape": k.shape, "feature": k.feature, "length": k.length, "shift": k.shift,
            "centre": k.centre_D.tolist(), "runs": doubles(process.x_RD),
        }  # fmt: skip
        if kernel not in kernels:
            kernels.append(kernel)
        drawn = model.process_draws_[c, j][:count][form_SJ[:, j] == c]
        processes.append({
            "form": c, "capability": j, "kernel": kernels.index(kernel), "centre": process.centre,
            "floor": process.floor, "beta": doubles(process.beta_R), "draws": _steps(drawn, process.beta_R),
        })  # fmt: skip
    v = model.volumes_
    return {
        "unit": v.scale,
        "kappa": v.kappa,
        "available": None if v.available is None else v.available.tolist(),
        "rho": v.rho.tolist(),
        "theta": [doubles(row) for row in model.theta_],
        "bounds": model.bounds_.tolist(),
        "location": model.location_.tolist(),
        "scale": model.scale_.tolist(),
        "sign": model.sign_.tolist(),
        "centre": model.centre_.tolist(),
        "known": model.known_.tolist(),
        "weights": model.weights_.tolist(),
        "on_law": ON_LAW.tolist(),
        "kernels": kernels,
        "processes": processes,
        "draws": count,
        "all_draws": len(model.weight_draws_),
        "form": form_SJ.T.tolist(),
        "known_draws": model.known_draws_[:count].T.tolist(),
        "bends": None
        if model.bends_ is None
        else {
            "slopes": model.bends_.slopes_SJD[:count].transpose(1, 0, 2).tolist(),
            "centre": model.bends_.centre_D.tolist(),
            "shift": SHIFT,
        },
        "theta_draws": [
            _steps(drawn, theta)
            for drawn, theta in zip(model.theta_draws_[:count].transpose(1, 0, 2), model.theta_, strict=True)
        ],
    }


def doubles(values: Array) -> str:
    """Write numbers in full, as base64 of little-endian float64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()


def singles(values: Array) -> str:
    """Write numbers to seven digits, as base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _steps(drawn_SP: Array, point_P: Array) -> dict[str, Any]:
    """Write draws as whole steps from the point's parameters, each parameter with a step of its own."""
    away = drawn_SP - point_P
    step = np.maximum(np.abs(away).max(axis=0, initial=0.0), 1e-300) / STEPS
    packed = base64.b64encode(np.rint(away / step).astype("<i2").tobytes()).decode()
    return {"step": doubles(step), "steps": packed}
