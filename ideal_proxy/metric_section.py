"""The section of a run file that says which metric judges a capability."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from ideal_proxy.batching import Section

# Settings of a metric that is a task of lm-eval, and of one that is a score of our own.
HARNESS = ("lm_eval", "shots", "limit", "tasks", "value", "cluster", "higher_is_better")
BUILT_IN = (
    "score", "limit", "cluster", "marks", "where", "extract", "check", "samples", "temperature", "max_new_tokens",
)  # fmt: skip


class MetricConfig(Section):
    """What a capability is judged by instead of its reference loss, which is measured and shown beside it."""

    command: str | None = Field(
        default=None, min_length=1, description="a program with {model}; the last line of its output is the score"
    )
    python: str | None = Field(default=None, description="package.module:function, called (model, tokenizer, split)")
    reported: bool = Field(default=False, description="proxy.command writes it to results.json, under scores")
    lm_eval: str | None = Field(default=None, min_length=1, description="a task of lm-eval, e.g. gsm8k")
    score: str | None = Field(
        default=None, pattern=r"^(choice|loss|exact_match|pass@[1-9]\d?)$",
        description="of the reference rows: choice, loss, exact_match or pass@K",
    )  # fmt: skip
    limit: int | None = Field(default=None, ge=2, description="lm_eval, score: most items of each half")
    cluster: str | None = Field(default=None, description="lm_eval, score: key that items of one origin share")
    shots: int | None = Field(default=None, ge=0, description="lm_eval: examples before each item")
    tasks: str | None = Field(default=None, description="lm_eval: folder of task files of your own")
    value: str | None = Field(default=None, description="lm_eval: which of the task's numbers, e.g. acc_norm")
    marks: str | None = Field(default=None, description="loss: column with the part of the answer that counts")
    where: str | None = Field(default=None, description="score: only rows in which this column is true")
    extract: str | None = Field(default=None, description="exact_match, pass@K: pattern of what counts of an answer")
    check: str | None = Field(default=None, description="exact_match, pass@K: package.module:function(answer, row)")
    samples: int = Field(default=8, ge=1, le=1000, description="pass@K: answers a prompt")
    temperature: float = Field(default=0.8, gt=0, le=2, description="pass@K")
    max_new_tokens: int = Field(default=256, ge=1, le=32768, description="exact_match, pass@K: of an answer")
    higher_is_better: bool = True
    timeout_seconds: float = Field(default=600.0, gt=0, description="it is ended after so long, and counts as failed")
    scale: float | str = Field(
        default="noise",
        description="what counts as much as a loss doubled: a number in its unit, 'base' for its value at base, or "
        "'noise': one run's noise counts as much as that of the reference loss",
    )
    noisy: bool = Field(default=False, description="search by it though it differs more by seeds than by mixtures")
    keep_models: bool = Field(default=False, description="leave every proxy in runs/ID/exported of the run directory")
    folder: str | None = Field(default=None, description="where it runs; default the run file's folder")

    @model_validator(mode="before")
    @classmethod
    def _loss_is_better_low(cls, values: Any) -> Any:
        """Know of a loss that less is better."""
        if isinstance(values, dict) and values.get("score") == "loss":
            return {**values, "higher_is_better": False}
        return values

    @property
    def named(self) -> str:
        """The metric in a word or a line."""
        return self.command or self.python or self.lm_eval or self.score or "reported"

    def settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return some settings, but for those that are the default."""
        fields = type(self).model_fields
        return {name: value for name in names if (value := getattr(self, name)) != fields[name].default}

    @field_validator("scale")
    @classmethod
    def _known_scale(cls, value: float | str) -> float | str:
        if value in ("noise", "base"):
            return value
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ValueError("must be noise, base or a number above 0")
        return number

    @model_validator(mode="after")
    def _one_way(self) -> MetricConfig:
        ways = {name: getattr(self, name) for name in ("command", "python", "lm_eval", "score")}
        given = [name for name, value in ways.items() if value is not None] + ["reported"] * self.reported
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(ways)} and reported")
        fits = {*HARNESS} if given == ["lm_eval"] else {*BUILT_IN} if given == ["score"] else set[str]()
        for name in dict.fromkeys((*HARNESS, *BUILT_IN)):
            if (
                name not in {*fits, "lm_eval", "score", "higher_is_better"}
                and name in self.model_fields_set
                and (getattr(self, name) != type(self).model_fields[name].default)
            ):
                raise ValueError(f"{name} is not for {given[0]}; take it out")
        if self.command is not None and "{model}" not in self.command:
            raise ValueError("the command must hold {model}, where the proxy's folder is put")
        if self.python is not None and not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", self.python):
            raise ValueError("python must read package.module:function")
        return self
