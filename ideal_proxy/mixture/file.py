"""The mixture file `mixture.json`: the result that `apply`, `export` and `scale-up` start from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from ideal_proxy.batching import MOST_ROWS, Batch, Distinct, Loss, Section
from ideal_proxy.complaints import first_problem
from ideal_proxy.config import SearchConfig
from ideal_proxy.data import KEY_VERSION
from ideal_proxy.domains import Domains
from ideal_proxy.errors import MOST_SEED, UNSEEN, UsageError, UserError, shortened
from ideal_proxy.sections import Format
from ideal_proxy.store import atomic_write_json, read_json

# what a verdict may be
IMPROVES: Final = "improves"
NO_BETTER: Final = "no better than base"
UNDECIDED: Final = "not enough evidence"
FORMAT: Literal["ideal-proxy/mixture/1"] = "ideal-proxy/mixture/1"
MOST_TOKENS = 10**18


class DomainVolume(Section):
    """One domain of a mixture: where its rows are, and how many to take."""

    name: str = Field(pattern=rf"^[^{UNSEEN}]{{1,80}}$")
    source: str = Field(description="file, glob, folder, hf:ID or demo:NAME?seed=S&rows=N")
    format: Format = "auto"
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 over the row keys in order")
    available: int = Field(ge=0, le=MOST_ROWS, description="rows that the source has to train on")
    left_out: list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]] = Field(
        default_factory=list, description="keys of the rows that the template refuses, in hex"
    )
    rows: int = Field(ge=0, le=MOST_ROWS, description="rows to train on, repeats included")
    tokens: int = Field(default=0, ge=0, le=MOST_TOKENS, description="tokens of those rows")
    supervised_tokens: int = Field(default=0, ge=0, le=MOST_TOKENS)
    share: float = Field(default=0.0, ge=0, le=1, description="of all tokens of the mixture")
    repeat: float = Field(default=0.0, ge=0, description="rows over available")
    base_rows: int = Field(default=0, ge=0, le=MOST_ROWS)
    change: float | None = Field(default=None, description="rows over base rows, less 1; null where base is 0")

    @model_validator(mode="after")
    def _drawable(self) -> DomainVolume:
        if self.rows and not self.available:
            raise ValueError(f"domain {self.name!r} wants {self.rows} rows but has none available")
        object.__setattr__(self, "repeat", self.rows / self.available if self.available else 0.0)  # no claim of a file
        return self


def with_shares(domains: Sequence[DomainVolume]) -> list[DomainVolume]:
    """Work out share (of tokens, or of rows where none are told), repeat and change from the rows of all domains."""
    amounts = [domain.tokens for domain in domains]
    if not any(amounts):
        amounts = [domain.rows for domain in domains]
    whole = max(1, sum(amounts))
    return [
        domain.model_copy(
            update={
                "share": amount / whole,
                "repeat": domain.rows / domain.available if domain.available else 0.0,
                "change": domain.rows / domain.base_rows - 1 if domain.base_rows else None,
            }
        )
        for domain, amount in zip(domains, amounts, strict=True)
    ]


class MetricResult(Section):
    """What a capability was judged by instead of its loss, in the metric's own unit."""

    command: str | None = None
    python: str | None = None
    named: str | None = Field(default=None, description="the metric in a word: gsm8k, choice, or its command")
    higher_is_better: bool = True
    scale: float | None = Field(default=None, description="what counted as much as a loss doubled")
    noise: float | None = Field(default=None, description="standard deviation of one proxy run")
    base_score: float | None = None
    score: float | None = None
    predicted_change: float | None = None
    verified_change: float | None = None
    verified_lower: float | None = None
    verified_upper: float | None = None


class CapabilityResult(Section):
    """One capability's losses in nats a supervised token: at base, predicted, and verified by training."""

    name: str = Field(pattern=rf"^[^{UNSEEN}]{{1,80}}$")
    source: str = ""
    format: Format = "auto"
    fingerprint: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    base_loss: float | None = None
    predicted_loss: float | None = None
    predicted_lower: float | None = None
    predicted_upper: float | None = None
    verified_loss: float | None = None
    verified_base_loss: float | None = None
    verified_gain: float | None = None
    verified_lower: float | None = None
    verified_upper: float | None = None
    metric: MetricResult | None = None


class FreeAnswer(Section):
    """What the same fit proposes without protection; predicted only, not checked."""

    rows: dict[str, int]
    predicted_gain: float
    predicted_lower: float
    predicted_upper: float
    predicted_changes: dict[str, float] = Field(
        description="of each capability's loss or score, relative; 0.02 is 2 % worse"
    )


class MixtureFile(Section):
    """A mixture with everything needed to repeat it: sources, fingerprints, volumes, seed, evidence, law."""

    format: Literal["ideal-proxy/mixture/1"] = FORMAT
    name: str = "mix"
    created: str = Field(default="", description="time, ISO 8601 UTC")
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    key_version: int = Field(default=KEY_VERSION, ge=1, description="of the row keys behind the fingerprints")
    loss: Loss = Field(default="token", description="over a step's supervised tokens, or a mean over its rows' means")
    batch: Batch | None = Field(default=None, description="what fills an optimiser step; null in files that do not say")
    epochs: int = Field(default=1, ge=1, description="of the base; all volumes hold them already: train one epoch")
    domains: Annotated[list[DomainVolume], Distinct] = Field(min_length=1)
    capabilities: Annotated[list[CapabilityResult], Distinct] = Field(default_factory=list)
    constraints_active: list[str] = Field(default_factory=list)
    verdict: str | None = None
    verdict_text: str | None = None
    gain: float | None = None
    gain_lower: float | None = None
    gain_upper: float | None = None
    predicted_gain: float | None = None
    free: FreeAnswer | None = Field(default=None, description="the answer without protection, where it is another")
    provenance: dict[str, Any] = Field(default_factory=dict)
    law: dict[str, Any] | None = None
    proxy_fraction: float | None = Field(default=None, gt=0, le=1)
    template: dict[str, Any] | None = None
    trust: dict[str, Any] | None = Field(default=None, description="in files of earlier versions: larger proxies")

    @classmethod
    def of(cls, config: SearchConfig, domains: Sequence[DomainVolume], **found: Any) -> MixtureFile:
        """Begin with what a run file says, today; `found` is what was found out beside it."""
        return cls(
            name=config.name, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), seed=config.seed,
            loss=config.loss, batch=config.batch, epochs=config.base.epochs, domains=with_shares(domains), **found,
        )  # fmt: skip

    @property
    def over(self) -> Domains:
        """The domains with their base mixture; all rows once where the file tells none."""
        base = np.array([domain.base_rows for domain in self.domains], dtype=float)
        available = np.array([domain.available for domain in self.domains], dtype=float)
        names = tuple(domain.name for domain in self.domains)
        return Domains(names=names, base=base if base.sum() > 0 else available, available=available)

    @property
    def total_rows(self) -> int:
        """Rows of the whole mixture."""
        return sum(domain.rows for domain in self.domains)

    @property
    def key_note(self) -> str:
        """Why fingerprints may differ though no data changed; nothing where the row keys are today's."""
        if self.key_version == KEY_VERSION:
            return ""
        return f" (its row keys are of version {self.key_version}, today's of {KEY_VERSION}: some kinds of rows differ)"


def kept_base(mixture: MixtureFile) -> str:
    """Say that a mixture is the base because the search found no better one; nothing where it did."""
    if mixture.verdict in {None, IMPROVES}:
        return ""
    return f"the search ended with `{mixture.verdict}`, so these are the volumes of the base"


def load_mixture(path: str | Path) -> MixtureFile:
    """Read and check a mixture file.

    Args:
        path: the JSON file.

    Returns:
        MixtureFile: its content.

    Raises:
        UsageError: it is missing, is no mixture file, or a value is wrong.
    """
    try:
        raw = read_json(path)
    except UserError as error:
        raise UsageError(str(error)) from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else None
        raise UsageError(f"{path} is not a mixture file: its format is {shortened(repr(found))}, it must be {FORMAT!r}")
    version = raw.setdefault("key_version", 1)  # files of before said nothing
    if type(version) is not int:
        raise UsageError(f"{path}: key_version is {shortened(repr(version))}, it must be a whole number")
    if version > KEY_VERSION:
        raise UsageError(
            f"{path} was written by a newer ideal-proxy: its row keys are of version {version}, this program makes "
            f"{KEY_VERSION}; upgrade it"
        )
    try:
        return MixtureFile.model_validate(raw)
    except ValidationError as error:
        raise UsageError(
            f"{path}: {first_problem(error, MixtureFile, raw, 'add it, or let `ideal-proxy search` write the file')}"
        ) from error


def save_mixture(path: str | Path, mixture: MixtureFile) -> None:
    """Write a mixture file atomically.

    Args:
        path: where to.
        mixture: what.

    Raises:
        UserError: a number in the law or the provenance is not finite, or the disk is full.
    """
    value = mixture.model_dump()
    place = _not_finite(value, "mixture")
    if place:
        raise UserError(f"{place} is not a finite number, so {path} cannot be written; leave it out")
    atomic_write_json(path, value)


def _not_finite(value: Any, place: str) -> str | None:
    """Return the place of the first NaN or infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return place
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found = _not_finite(inner, f"{place}.{key}")
        if found:
            return found
    return None
