"""A fitted model as plain JSON values, complete: predictions, intervals and draws are equal after a round trip."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ideal_proxy.errors import shortened
from ideal_proxy.response import bends
from ideal_proxy.response.diagnosis import Diagnosis
from ideal_proxy.response.inputs import BadInput
from ideal_proxy.response.law import Volumes
from ideal_proxy.response.process import Kernel, Process, restore

FORMAT = "ideal-proxy/fit/2"
ARRAYS = (
    "theta_", "bounds_", "covariance_", "theta_draws_", "weights_", "centre_", "known_", "known_draws_", "widening_",
    "noise_", "seed_sd_", "location_", "scale_", "residual_scale_", "seed_scale_", "held_out_", "log_rho_error_",
    "response_scale_",
)  # fmt: skip
FLAGS = ("harm_", "is_convex_", "repeat_identified_")
PLAIN = (
    "process_seed_", "n_features_in_", "target_names_", "domain_names_", "trust_", "fidelity_", "own_", "gain_slope_",
    "at_base_",
)  # fmt: skip


def _plain(value: Any) -> Any:
    """Turn arrays to lists and numbers that JSON lacks to null or names."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _process(p: Process) -> dict[str, Any]:
    return {
        "shape": p.kernel.shape, "feature": p.kernel.feature, "shift": p.kernel.shift, "length": p.kernel.length,
        "features_centre": _plain(p.kernel.centre_D),
        "noise_ratio": p.noise_ratio, "variance": p.variance, "centre": p.centre, "floor": p.floor,
        "x": _plain(p.x_RD), "weight": _plain(p.weight_R), "target": _plain(p.target_R),
    }  # fmt: skip


def _restored(d: dict[str, Any]) -> Process:
    x, weight, target = (np.array(d[key], dtype=float) for key in ("x", "weight", "target"))
    centre = np.array(d["features_centre"], dtype=float)
    kernel = Kernel(d["shape"], d["feature"], float(d["length"]), centre, float(d["shift"]))
    return restore(kernel, float(d["noise_ratio"]), float(d["variance"]), x, weight, target, d["centre"], d["floor"])


def dump(model: Any) -> dict[str, Any]:
    """Write a fitted model as JSON values."""
    state = {name: _plain(getattr(model, name)) for name in (*ARRAYS, *FLAGS, *PLAIN)}
    return {
        "format": FORMAT,
        "options": _plain(model.get_params()),
        "named": hasattr(model, "feature_names_in_"),
        "one_dimensional": model._one_dimensional_,
        "volumes": _plain(asdict(model.volumes_)),
        "forms": {
            str(c): {str(j): _process(p) for place, j, p in model._used() if place == c} for c in model.processes_
        },
        "diagnostics": [_plain(asdict(d)) for d in model.diagnostics_],
        "sign_": _plain(model.sign_),
        "bends_": bends.to_json(model.bends_),
        "correlation_": _plain(model.correlation_),
        **state,
    }


def load(model: Any, document: dict[str, Any]) -> None:
    """Fill a new model from what :func:`dump` wrote."""
    if document.get("format") != FORMAT:
        raise BadInput(
            f"The fit says format {shortened(repr(document.get('format')))} and {FORMAT!r} is needed: fit again."
        )
    for name in ARRAYS:
        setattr(model, name, np.array(document[name], dtype=float))
    for name in FLAGS:
        setattr(model, name, np.array(document[name], dtype=bool))
    for name in PLAIN:
        setattr(model, name, float("inf") if document[name] == "inf" else document[name])
    model.bends_ = bends.from_json(document["bends_"])
    model._one_dimensional_ = document["one_dimensional"]
    J = len(model.theta_)
    model.kinds_ = (model.kind,) * J if isinstance(model.kind, str) else tuple(model.kind)
    model.sign_ = np.broadcast_to(np.array(document["sign_"], dtype=float), (J,)).copy()
    model.correlation_ = np.array(document["correlation_"], dtype=float)
    if document["named"]:
        model.feature_names_in_ = np.array(document["domain_names_"], dtype=object)
    v = document["volumes"]
    available = None if v["available"] is None else np.array(v["available"], dtype=float)
    model.volumes_ = Volumes(float(v["scale"]), float(v["kappa"]), available, np.array(v["rho"], dtype=float))
    model.processes_ = {
        int(c): {int(j): _restored(d) for j, d in members.items()} for c, members in document["forms"].items()
    }
    nan = float("nan")
    model.diagnostics_ = [
        Diagnosis(**{
            **d,
            "weights": tuple(d["weights"]),
            "rank_correlation": nan if d["rank_correlation"] is None else d["rank_correlation"],
            "error": nan if d["error"] is None else d["error"],
            "parameters": {k: (e[0], e[1]) for k, e in d["parameters"].items()},
        })
        for d in document["diagnostics"]
    ]
