"""What a mixture file says of objective and constraints, made ready for the optimiser at full size.

Legend: D domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.mixture import MixtureFile
from ideal_proxy.optimizer import Constraints, Objective, Problem

Array = NDArray[np.float64]
KEPT = ("pinned", "repeat_cap", "groups", "must_not_drop", "lower", "upper")


def file_objective(mixture: MixtureFile) -> Objective:
    """Read what the search minimised; the mean where the file does not say.

    Args:
        mixture: the file; `provenance.objective` holds it.

    Returns:
        Objective: what to minimise.
    """
    found = mixture.provenance.get("objective")
    if not isinstance(found, dict):
        return Objective()
    return Objective(
        kind=found.get("kind", "mean"),
        weights=found.get("weights") if found.get("kind") == "weighted" else None,
        upper_confidence=found.get("upper_confidence"),
        kl_penalty=float(found.get("kl") or 0.0),
    )


def budget_kind(mixture: MixtureFile) -> str:
    """Tell how the search's budget was meant.

    Args:
        mixture: the file.

    Returns:
        str: as in the run file: `free`, `at most …`, `exactly …` or `keep` (also where the file does not say).
    """
    found = mixture.provenance.get("constraints")
    return str(found.get("budget") or "keep") if isinstance(found, dict) else "keep"


def token_unit(mixture: MixtureFile) -> bool:
    """Tell whether the search counted its budget and its shares in tokens.

    Args:
        mixture: the file.

    Returns:
        bool: False for rows, and where the file does not say.
    """
    found = mixture.provenance.get("constraints")
    return isinstance(found, dict) and found.get("budget_unit") == "tokens"


def file_constraints(
    mixture: MixtureFile,
    problem: Problem,
    *,
    budget: str,
    unit: str,
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> Constraints:
    """Read the run file's limits from a mixture file: pins, repeats, groups, bounds, and what must not drop.

    Args:
        mixture: the file; `provenance.constraints` holds them, without them only the default repeat cap holds.
        problem: the full-size problem; its base is what must-not-drop, pins and the trust region refer to.
        budget: the full-size budget, as `Constraints.from_options` takes it.
        unit: of the budget, `rows` or `tokens`.
        more: further `lower` and `upper` bounds by domain, in rows; the tighter one holds.

    Returns:
        Constraints: without a trust region of their own.
    """
    found = mixture.provenance.get("constraints")
    kept: dict[str, Any] = {key: found[key] for key in KEPT if found.get(key)} if isinstance(found, dict) else {}
    if "must_not_drop" in kept:  # a tolerance of a score says nothing of a loss, by which full-size runs are judged
        scores = {c.name for c in mixture.capabilities if c.metric is not None}
        kept["must_not_drop"] = {n: t for n, t in kept["must_not_drop"].items() if n not in scores} or None
    options = {**kept, "budget": budget, "budget_unit": unit}
    for key, tighter in (("lower", max), ("upper", min)):
        bounds = dict(kept.get(key) or {})
        for name, text in ((more or {}).get(key) or {}).items():
            old = bounds.get(name)
            bounds[name] = text if old is None else f"{tighter(_rows(old), _rows(text))} rows"
        options[key] = bounds or None
    constraints = Constraints.from_options(options, problem)
    # A share without a unit of its own is one of the search's budget, whatever unit the full-size total is given in.
    of: Literal["rows", "tokens"] = "tokens" if token_unit(mixture) and problem.tokens_per_row is not None else "rows"
    groups = tuple(
        replace(group, of=of) if group.unit == "share" and group.of is None else group for group in constraints.groups
    )
    return replace(constraints, groups=groups)


def _rows(text: str) -> float:
    return float(str(text).removesuffix(" rows"))


def tokens_per_row(mixture: MixtureFile, measured: Array | None = None) -> Array | None:
    """Give every domain's tokens a row, in the proxies' tokenizer where the file tells them.

    Args:
        mixture: the file.
        measured: (D,) mean tokens a row by the full-size model's tokenizer, for domains without a volume.

    Returns:
        array (D,): None where a domain's tokens are not known.
    """
    told = np.array([d.tokens / d.rows if d.rows and d.tokens else np.nan for d in mixture.domains])
    missing = np.isnan(told)
    if missing.any():
        if measured is None:
            return None
        scale = float(np.mean(told[~missing] / measured[~missing])) if not missing.all() else 1.0
        told[missing] = scale * measured[missing]
    return told
