"""How the target trainer forms its loss and its optimiser steps, and what of the base a run file keeps.

The run file says it, the proxies and the full-size run train by it, and the mixture file keeps it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Loss = Literal["token", "row"]
MOST_ROWS = 10**15  # of a volume, or of anything that is counted
BATCH_ROWS = 32  # of an optimiser step, where nothing says otherwise
Ints = NDArray[np.int64]


class Section(BaseModel):
    """One block of the run file; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true where a number is asked; pydantic reads it as 1."""
        if isinstance(value, bool):
            takes = cls.model_fields[str(info.field_name)].annotation
            kinds = {takes, *get_args(takes)}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("must be a number, not true or false")
        return value


def distinct(values: Sequence[Any]) -> Any:
    """Refuse domains or capabilities of which two have one name."""
    counts = Counter(value.name for value in values)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(f"the name {twice[0]!r} stands twice; names must differ")
    return values


Distinct = AfterValidator(distinct)


class Batch(Section):
    """What fills one optimiser step: so many rows, or so many tokens."""

    rows: int | None = Field(default=None, ge=1, le=MOST_ROWS, description="rows of an optimiser step; default 32")
    tokens: int | None = Field(
        default=None, ge=1, le=MOST_ROWS, description="tokens of an optimiser step, prompts counted"
    )

    @model_validator(mode="after")
    def _one_unit(self) -> Batch:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("give either rows or tokens, such as batch: {rows: 32}")
        return self

    @property
    def unit(self) -> Literal["rows", "tokens"]:
        """What a step counts."""
        return "rows" if self.tokens is None else "tokens"

    def mean_rows(self, tokens_per_row: float) -> float:
        """Rows of a step, on average."""
        return float(self.rows) if self.tokens is None else max(1.0, self.tokens / tokens_per_row)  # type: ignore[arg-type]

    def steps(self, rows: float, tokens: float) -> int:
        """Steps of one pass over so many rows with so many tokens in all; the last one may be smaller."""
        return int(np.ceil((rows / self.rows if self.rows else tokens / (self.tokens or 1)) - 1e-9))

    def __str__(self) -> str:
        return f"{self.rows or self.tokens:,} {self.unit}"


def step_bounds(lengths_R: Ints, batch: Batch) -> Ints:
    """First row of every step and, last, the number of rows, (S + 1,); rows in training order, packing comes later."""
    # Counted in tokens, a row belongs to the step in which its first token lies when all rows are laid end to end, so
    # steps have the wanted tokens on average and a long row belongs to one step.
    count = len(lengths_R)
    if batch.rows is not None:
        return np.append(np.arange(0, count, batch.rows, dtype=np.int64), count)
    assert batch.tokens is not None
    window = (np.cumsum(lengths_R) - lengths_R) // batch.tokens
    fresh = np.flatnonzero(np.diff(window, prepend=-1))
    return np.append(fresh, count).astype(np.int64)


class BaseConfig(Section):
    """The base mixture as a whole."""

    epochs: int = Field(default=1, ge=1, description="every domain's base volume counts so many times over")


class BudgetConfig(Section):
    """How much the full-size run may train on."""

    unit: Literal["tokens", "rows"] = "tokens"
    mode: Literal["keep", "at_most", "free"] = "keep"
    total: int | None = Field(default=None, gt=0, description="default: the base mixture's total")
    steps: Literal["keep"] | None = Field(
        default=None,
        description="keep: as many optimiser steps as base; alone it frees the total, beside mode both hold",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """Read {tokens: keep} as {unit: tokens, mode: keep}; steps alone leave the total free."""
        if not isinstance(values, dict):
            return values
        rest = dict(values)
        for unit in ("tokens", "rows"):
            if unit in rest:
                if "unit" in rest or "mode" in rest:
                    raise ValueError(f"give either {unit}, or unit and mode")
                rest |= {"unit": unit, "mode": rest.pop(unit)}
        if rest.get("steps") and rest.get("total"):
            raise ValueError("steps: keep holds the base's number of steps, so leave total out")
        if rest.get("steps") is not None and not {"mode", "total"} & set(rest):
            rest["mode"] = "free"
        return rest
