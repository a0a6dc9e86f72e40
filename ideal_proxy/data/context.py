"""How many tokens a row may have: what the run file says, else what the data needs and the model and memory take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ideal_proxy.data.tokens import TokenRows

CUT_SHARE = 0.05  # of a source's supervised tokens; more makes another data set of it
STEP = 64
SHARES = (95, 98, 99, 100)  # percentiles of the rows' lengths; the first that cuts little enough is taken
LONGEST = 32_768  # tokens, as in the run file


@dataclass(frozen=True, slots=True)
class Context:
    """The most tokens of a row."""

    tokens: int  # how many
    reason: str = "given"  # where the number comes from


@dataclass(frozen=True, slots=True)
class Limit:
    """The most tokens of a row that a model reads and this machine's memory takes, and which of the two it is."""

    tokens: int = LONGEST
    reason: str = "more is taken only where the run file says it"


def choose_context(sources: Mapping[str, TokenRows], limit: Limit, bos: int | None) -> Context:
    """Choose how many tokens a row may have, a multiple of 64: what 95 % of the rows of every source need, or more."""
    # More where that would cut over 5 % of a source's supervised tokens, for a few long rows may hold most of them.
    tokens, need = STEP, "short rows"
    for share in SHARES:
        full = {name: rows for name, rows in sources.items() if len(rows)}
        needed = {name: int(np.percentile(rows.lengths, share, method="inverted_cdf")) for name, rows in full.items()}
        if not needed:
            break
        name = max(needed, key=lambda name: needed[name])
        tokens = max(-(-needed[name] // STEP) * STEP, STEP)
        of_it = name if name.startswith("reference rows of ") else f"rows of {name}"
        need = f"the longest row of {name}" if share == 100 else f"{share} % of the {of_it}"
        if tokens > limit.tokens:
            return Context(limit.tokens, f"{limit.reason}; {need} would take {tokens:,}")
        if all(rows.cut(tokens, bos).cut_share <= CUT_SHARE for rows in sources.values()):
            break
    return Context(tokens, f"for {need}")
