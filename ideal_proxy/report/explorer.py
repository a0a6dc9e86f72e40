"""The explorer of the report: what its sliders start from, where they end, and what they are marked with.

The page computes every prediction itself, from `embedded.py`, with `templates/explorer.js`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import markupsafe
import numpy as np

from ideal_proxy.pipeline import SearchRun, make_constraints
from ideal_proxy.report.choices import optima
from ideal_proxy.report.curves import Array
from ideal_proxy.report.embedded import LEAST_DRAWS, comparison, singles
from ideal_proxy.report.whatif import MIXTURE


def explorer(run: SearchRun) -> dict[str, Any] | None:
    """Collect what the explorer needs; nothing where the fit is too large for a page."""
    config, domains = run.config, run.prepared.domains
    known = comparison(
        run.model, run.base, pairs=config.verify.pairs, kind=config.objective.kind,
        weights=[c.weight for c in config.capabilities], yardstick=run.yardstick,
    )  # fmt: skip
    if known["model"]["draws"] < LEAST_DRAWS:
        return None
    ran = np.vstack([run.volumes(), run.base, run.proposal])
    low, high = ran.min(axis=0), ran.max(axis=0)
    tokens = domains.lengths
    kept = config.batch.unit
    free = run.result.get("free")
    free_rows = [float(free["rows"][name]) for name in run.domains] if free else None
    found = _choices(run, np.vstack([ran, *([free_rows] if free_rows else [])]))
    return known | {
        "name": run.result["name"],
        "folder": run.folder.name,
        "domains": list(run.domains),
        "capabilities": run.capabilities,
        "kinds": list(config.kinds),
        "proposal": run.proposal.tolist(),
        "free": free_rows,
        "available": [float(fact.available) for fact in run.prepared.facts],
        "low": np.floor(low).tolist(),
        "high": np.ceil(high).tolist(),
        "moves": [entry["moves"] for entry in run.result["domains"]],
        "tokens": tokens.tolist(),
        "supervised": [float(fact.supervised_per_row) for fact in run.prepared.facts],
        "totals": [float((ran @ tokens).min()), float((ran @ tokens).max())],
        "kept": (tokens if config.limits.budget_unit != "rows" else np.ones_like(tokens)).tolist(),
        "keep": config.budget.mode == "keep",
        "batch": getattr(config.batch, kept),
        "kept_unit": config.limits.budget_unit,
        "pairs": config.verify.pairs,
        "choices": len(found),
        "optima": singles(found),
        "mixture": run.mixture.model_dump(mode="json", include=MIXTURE),
        "a_step": (tokens if kept == "tokens" else np.ones_like(tokens)).tolist(),
    }


def _choices(run: SearchRun, starts: Array) -> Array:
    """Optima under the run's linear limits, for the sliders set what may get worse; base and answers among them."""
    made = make_constraints(run.config, run.prepared, run.volumes())
    made = replace(made, limits=replace(made.limits, must_not_drop={}, protect={}))
    weights = np.array([c.weight for c in run.config.capabilities])
    found = optima(run.model, made, run.yardstick, starts, kind=run.config.objective.kind, weights=weights)
    answers = [run.base, run.proposal, *starts[len(run.volumes()) + 2 :]]
    return np.unique(np.vstack([found, *answers]), axis=0)


def script() -> tuple[markupsafe.Markup, str]:
    """Read the page's script, and say what it is known by in the content-security policy."""
    text = (files("ideal_proxy.report") / "templates" / "explorer.js").read_text(encoding="utf-8")
    return markupsafe.Markup(text), "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embed(values: Any) -> markupsafe.Markup:
    """Write values as JSON that no HTML parser takes for a tag or an entity."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return markupsafe.Markup(text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}))
