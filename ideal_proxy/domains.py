"""The domains of a search, fixed while it runs, and mixtures of them: one volume for every domain.

Legend: D domains. Volumes are full-size rows, or shares that sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ideal_proxy.errors import UsageError, shortened

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Domains:
    """The domains that a mixture is made of.

    Attributes:
        names: D names.
        base: base mixture (D,), rows or shares.
        available: rows that each domain has (D,); None for shares or where unknown.
        tokens_per_row: mean tokens of one row (D,); None where unknown.
        unit: `rows`, or `share` for published tables with a fixed total.

    Raises:
        UsageError: a number is missing, negative or not finite, a name stands twice, or the base is empty.
    """

    names: tuple[str, ...]
    base: FloatArray
    available: FloatArray | None = None
    tokens_per_row: FloatArray | None = None
    unit: Literal["rows", "share"] = "rows"

    def __post_init__(self) -> None:
        check_names(self.names, "domain")
        for name in ("base", "available", "tokens_per_row"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.array(value, dtype=np.float64))
                self._check_column(name, getattr(self, name))
        if self.base.sum() <= 0:
            raise UsageError("The base mixture is empty; give at least one domain a positive base volume.")
        if self.tokens_per_row is not None and not np.all(self.tokens_per_row > 0):
            raise UsageError("Every domain needs a positive number of tokens a row.")
        if self.unit == "share" and abs(self.base.sum() - 1) > 1e-6:
            raise UsageError(f"The base shares sum to {self.base.sum():.6g}; shares must sum to 1.")

    def _check_column(self, name: str, values: FloatArray) -> None:
        if values.shape != (len(self),):
            raise UsageError(f"{name} has shape {values.shape}; one number for each domain is needed.")
        if bad := [d for d, x in zip(self.names, values, strict=True) if not (np.isfinite(x) and x >= 0)]:
            raise UsageError(f"{name} is negative or not finite for {', '.join(bad)}.")

    @property
    def supply(self) -> FloatArray:
        """Rows that each domain has; an error where they are not known."""
        if self.available is None:
            raise UsageError("The rows that each domain has are not known here; give them.")
        return self.available

    @property
    def lengths(self) -> FloatArray:
        """Tokens of one row of each domain; an error where they are not known."""
        if self.tokens_per_row is None:
            raise UsageError("A constraint in tokens needs the tokens a row of every domain; use rows instead.")
        return self.tokens_per_row

    def __len__(self) -> int:
        return len(self.names)


def check_names(names: tuple[str, ...], what: str) -> None:
    """Refuse no name, or one that stands twice."""
    if not names or len(set(names)) != len(names):
        raise UsageError(f"The {what} names must be distinct and at least one; got {shortened(str(list(names)), 200)}.")
