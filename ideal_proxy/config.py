"""The run file `mix.yaml`: every setting, its default and what it may be. Unknown keys are errors."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ideal_proxy.amounts import Amount, parse_comparison
from ideal_proxy.batching import BATCH_ROWS, BaseConfig, Batch, BudgetConfig, Loss, Section
from ideal_proxy.complaints import first_problem
from ideal_proxy.errors import UNSEEN, UsageError, UserError
from ideal_proxy.limits import PROTECT, Budget, Limits, plain_protection, read_protection

SIZES = ("0.1M", "1M", "3M", "10M")  # of scratch proxies, rising
Protect = Annotated[float | Literal["none"] | dict[str, float | Literal["none"]], BeforeValidator(plain_protection)]
Format = Annotated[
    str, Field(pattern=r"^(auto|alpaca|chat|prompt|columns:.+)( chat_template_kwargs:.+)?$")
]  # columns: is written by `columns`
VOLUME = "a count of rows (400), a share of the rows there are ('30%') or a multiple of them ('2x')"


def _volume(value: Any) -> Any:
    """Refuse what YAML reads as neither a whole number nor text: 0.5, true, a list."""
    if value is None or isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"must be {VOLUME}")


Volume = Annotated[int | str | None, BeforeValidator(_volume)]


class ColumnsConfig(Section):
    """The columns of rows that are in no known layout."""

    prompt: str | tuple[str, ...] | None = Field(default=None, description="a column, or several that are put together")
    completion: str | tuple[str, ...] | None = Field(default=None, description="as for prompt")
    messages: str | None = Field(default=None, description="the column with the turns")
    role: str | None = Field(default=None, description="of a turn: who speaks; default role")
    content: str | None = Field(default=None, description="of a turn: what is said; default content")
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] | None = Field(
        default=None, description="names of roles other than the usual ones, e.g. {customer: user}"
    )
    system: str | None = None
    tools: str | None = None

    @model_validator(mode="after")
    def _one_layout(self) -> ColumnsConfig:
        if (self.messages is None) == (self.prompt is None) or (self.prompt is None) != (self.completion is None):
            raise ValueError("give either prompt and completion, or messages")
        return self


class SourceSection(Section):
    """Where rows are, and how they are written."""

    path: str = Field(min_length=1, description="file, glob, folder, hf:NAME, or demo:NAME?seed=S")
    format: Format = Field(default="auto", description="auto, alpaca, chat or prompt")
    columns: ColumnsConfig | None = Field(
        default=None, description="e.g. {prompt: question, completion: [rationale, answer]}"
    )

    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="given to the chat template with every row, e.g. {enable_thinking: false}"
    )

    @model_validator(mode="before")
    @classmethod
    def _whole_format(cls, values: Any) -> Any:
        """Write columns and settings as a part of the format, which goes wherever the source goes."""
        if not isinstance(values, dict):
            return values
        written, _, _ = str(values.get("format") or "auto").partition(" chat_template_kwargs:")
        if isinstance(values.get("columns"), dict):
            columns = {key: value for key, value in values["columns"].items() if value is not None}
            mapped = "columns:" + json.dumps(columns, sort_keys=True, default=list)
            if written not in ("auto", mapped):
                raise ValueError("give either format or columns")
            written = mapped
        if isinstance(values.get("chat_template_kwargs"), dict):
            written += " chat_template_kwargs:" + json.dumps(values["chat_template_kwargs"], sort_keys=True)
        return {**values, "format": written} if written != "auto" else values


class DomainConfig(SourceSection):
    """One named source of training rows."""

    name: str = Field(
        max_length=80,
        pattern=rf"^\.*[^./\\{UNSEEN}][^/\\{UNSEEN}]*(/\.*[^./\\{UNSEEN}][^/\\{UNSEEN}]*)*$",
        description="maths, or maths/high for a part of it",
    )
    base: Volume = Field(
        default=None, description="rows you would have used: a count, '30%' or '2x' of the rows there are"
    )
    min: Volume = Field(default=None, description="fewest rows; as for base")
    max: Volume = Field(default=None, description="most rows; as for base")
    pinned: bool = Field(default=False, description="keep the base volume")


class MetricConfig(Section):
    """What a capability is judged by instead of its reference loss, which is measured and shown beside it."""

    command: str | None = Field(
        default=None, min_length=1, description="a program with {model}; the last line of its output is the score"
    )
    python: str | None = Field(default=None, description="package.module:function, called (model, tokenizer, split)")
    higher_is_better: bool = True
    timeout_seconds: float = Field(default=600.0, gt=0, description="it is ended after so long, and counts as failed")
    scale: float | str = Field(
        default="noise",
        description="what counts as much as a loss doubled: a number in its unit, 'base' for its value at base, or "
        "'noise': one run's noise counts as much as that of the reference loss",
    )
    keep_models: bool = Field(default=False, description="leave every proxy in runs/ID/exported of the run directory")
    folder: str | None = Field(default=None, description="where it runs; default the run file's folder")

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
        if (self.command is None) == (self.python is None):
            raise ValueError("give either command or python, and not both")
        if self.command is not None and "{model}" not in self.command:
            raise ValueError("the command must hold {model}, where the proxy's folder is put")
        if self.python is not None and not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", self.python):
            raise ValueError("python must read package.module:function")
        return self


class CapabilityConfig(SourceSection):
    """One named reference set that the result is judged on."""

    name: str = Field(pattern=rf"^[^/\\{UNSEEN}]{{1,80}}$")
    domain: str | None = Field(default=None, description="its own domain; default: the domain of exactly its name")
    weight: float = Field(default=1.0, gt=0)
    must_not_drop: float | None = Field(
        default=None, ge=0, le=1,
        description="largest relative rise of this loss allowed, 0.01 is 1 %; of a metric: of its value at base",
    )  # fmt: skip
    metric: MetricConfig | None = None


class ConstraintsConfig(Section):
    """Limits on the volumes besides the bounds of each domain."""

    max_repeat: float = Field(default=4.0, gt=0, description="no domain is used more than so many times over")
    trust_region: float | None = Field(
        default=None, gt=0, description="largest |log change| of a volume; default: what the swarm explored"
    )
    groups: tuple[str, ...] = Field(default=(), description="e.g. 'coding + mathematics <= 60%'")
    kl: float = Field(default=0.0, ge=0, description="weight of a KL divergence to the base shares")
    round: int = Field(default=1, ge=1, description="propose multiples of so many rows where that costs nothing seen")


class ObjectiveConfig(Section):
    """What to minimise, over L_j(v) / L_j(base); a metric's difference from base over its scale counts likewise."""

    kind: Literal["mean", "weighted", "worst"] = "mean"
    upper_confidence: float | None = Field(
        default=None, gt=0.5, lt=1, description="optimise the upper bound at this level, e.g. 0.9"
    )
    min_gain: float = Field(default=0.005, gt=0, lt=0.5, description="a smaller gain is no gain")


SCRATCH_DEFAULTS: dict[str, Any] = {"size": "1M", "vocabulary": 4096, "warm_fraction": 0.15}
LARGEST_FRACTION = 0.85  # φ of scratch proxies


class ProxyConfig(Section):
    """The proxies: scratch models from a size dial, or a pretrained model, trained in full or as LoRA.

    A pretrained proxy brings its own size, vocabulary and template, and reserves no rows: those keys are None then.
    """

    size: Literal["0.1M", "1M", "3M", "10M"] | None = Field(default=None, description="scratch; default 1M")
    vocabulary: int | None = Field(default=None, ge=300, le=65536, description="scratch; default 4096")
    model: str | None = Field(
        default=None, min_length=1, description="pretrained: folder or hub id of any causal language model"
    )
    gguf: str | None = Field(default=None, description="file of quantised weights in the model's folder or repository")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    lora_rank: int | None = Field(default=None, ge=1, le=1024, description="low-rank updates; default: every weight")
    context: int | None = Field(default=None, ge=16, le=32768, description="longest row, tokens; default: by the data")
    allow_truncation: bool = Field(
        default=False, description="search even where that removes over 5 % of a domain's supervised tokens"
    )
    fraction: float | None = Field(
        default=None, gt=0, le=1, description="share φ of the volumes that a proxy sees; default: by budget"
    )
    batch_rows: int | None = Field(default=None, ge=1, description="an older way to write batch: {rows: N}")
    learning_rate: float | None = Field(default=None, gt=0, description="default: chosen once by a short sweep")
    warm_fraction: float | None = Field(
        default=None, gt=0, lt=0.9, description="scratch: rows reserved for the warm start; default 0.15"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")

    @model_validator(mode="before")
    @classmethod
    def _scratch_defaults(cls, values: Any) -> Any:
        """Fill in what only a scratch proxy has."""
        if not isinstance(values, dict) or values.get("model") is not None:
            return values
        return {**values, **{key: value for key, value in SCRATCH_DEFAULTS.items() if values.get(key) is None}}

    @model_validator(mode="after")
    def _one_kind(self) -> ProxyConfig:
        """Refuse keys of one kind of proxy beside those of the other."""
        if self.model is not None:
            for key in SCRATCH_DEFAULTS:
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is of scratch proxies and model names a pretrained one; drop one of them")
            return self
        for key in ("gguf", "revision", "trust_remote_code", "lora_rank"):
            if getattr(self, key):
                raise ValueError(f"{key} is of a pretrained proxy; name it with model (a folder or a hub id)")
        if self.fraction is not None and self.fraction > LARGEST_FRACTION:
            raise ValueError(
                f"fraction is {self.fraction:g}; scratch proxies see at most {LARGEST_FRACTION:g}, "
                "for the warm start reserves rows"
            )
        return self


class SwarmConfig(Section):
    """How many proxies, and where they run."""

    runs: int | None = Field(default=None, ge=4, description="default 3(n+1) for n domains")
    seeds: int = Field(default=2, ge=2, le=5)
    spread: float = Field(default=2.0, gt=0, le=5, description="half-width of the design in log-volume")
    workers: int | None = Field(default=None, ge=1, description="default: one a core, or one a device")
    max_hours: float | None = Field(default=None, gt=0)
    engine: Literal["local", "ray"] = Field(default="local", description="this machine, or a Ray cluster that is there")
    address: str = Field(
        default="auto", description="of the Ray cluster: auto, HOST:PORT, or local to start one on this machine"
    )
    gpus: float = Field(default=0, ge=0, description="GPUs of a worker on Ray; a fraction where several share one")
    keep_weights: float = Field(
        default=64,
        ge=0,
        description="keep a run's weights up to so many MB (2 GB in all) for capabilities that come later; 0: none",
    )

    @model_validator(mode="after")
    def _with_effect(self) -> SwarmConfig:
        if self.engine == "local" and (self.address != "auto" or self.gpus):
            raise ValueError("address and gpus are for engine: ray; set that, or take them out")
        return self


class VerifyConfig(Section):
    """The check of the proposal by fresh training runs, on rows that the search never saw."""

    pairs: int = Field(default=3, ge=2, description="fresh seeds at first")
    max_pairs: int = Field(default=8, ge=2)
    larger_size: Literal["1M", "3M", "10M"] | None = Field(
        default=None, description="train three spread mixtures at this size too, to see whether they rank the same"
    )

    @model_validator(mode="after")
    def _ordered(self) -> VerifyConfig:
        if self.max_pairs < self.pairs:
            raise ValueError(f"max_pairs ({self.max_pairs}) is below pairs ({self.pairs})")
        return self


class CostConfig(Section):
    """What the search may cost; no result depends on it."""

    price: float | None = Field(
        default=None, gt=0, description="of one hour of one device: a GPU, or the whole machine where proxies use CPUs"
    )
    currency: str = Field(default="USD", max_length=12, description="a label only; nothing is converted")
    max: float | None = Field(default=None, gt=0, description="most money; shrinks the search as max_hours does")
    devices: int | None = Field(
        default=None, ge=1, description="devices paid for; default: the GPUs that workers share, or one machine"
    )


class SearchConfig(Section):
    """The whole run file."""

    name: str = "mix"
    reuse: tuple[str, ...] = Field(default=(), description="run directories of earlier searches whose runs count here")
    seed: int = Field(default=0, ge=0)
    domains: tuple[DomainConfig, ...] = Field(min_length=2)
    capabilities: tuple[CapabilityConfig, ...] = Field(min_length=1)
    base: BaseConfig = BaseConfig()
    loss: Loss = Field(
        default="token",
        description="as the target trainer has it: mean over a step's supervised tokens, or a row's mean",
    )
    batch: Batch = Field(
        default=Batch(rows=BATCH_ROWS), description="what fills an optimiser step of the target trainer"
    )
    budget: BudgetConfig = BudgetConfig()
    constraints: ConstraintsConfig = ConstraintsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    proxy: ProxyConfig = ProxyConfig()
    swarm: SwarmConfig = SwarmConfig()
    verify: VerifyConfig = VerifyConfig()
    cost: CostConfig = CostConfig()
    protect: Protect = Field(default=PROTECT, description="most that a capability may lose: 2%, none, or by name")
    on_bad_rows: Literal["drop", "refuse"] = Field(
        default="drop", description="rows that cannot be read: left out and counted, or the first stops"
    )
    max_bad: int | None = Field(
        default=None, ge=0, description="most of them in a source; default: the larger of 10 rows and 1 %"
    )
    rounds: int = Field(default=3, ge=1, le=10)
    gradients: Literal["auto", "implicit", "unrolled", "none"] = Field(
        default="none", description="responses of the trained proxies that enter the fit; auto: where they may earn"
    )
    tracker: str | None = Field(
        default=None, description="package.module:function that is told how the search goes on; or wandb, mlflow, ..."
    )

    @model_validator(mode="after")
    def _larger_than_the_proxies(self) -> SearchConfig:
        larger, size = self.verify.larger_size, self.proxy.size
        if larger is not None and (size not in SIZES or SIZES.index(larger) <= SIZES.index(size)):
            raise ValueError(
                f"verify.larger_size is {larger} and the proxies are {size or 'pretrained'}; "
                "the trust check needs scratch proxies and a size above theirs"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _empty_blocks(cls, raw: Any) -> Any:
        """Read a key whose lines are all commented out as not given, and proxy.batch_rows as batch."""
        if not isinstance(raw, dict):
            return raw
        raw = {key: value for key, value in raw.items() if value is not None}
        proxy = raw.get("proxy")
        if isinstance(proxy, dict) and proxy.get("batch_rows") is not None:
            rows = proxy["batch_rows"]
            if raw.setdefault("batch", {"rows": rows}) != {"rows": rows}:
                raise ValueError("batch and proxy.batch_rows differ; leave proxy.batch_rows out")
            raw["proxy"] = {key: value for key, value in proxy.items() if key != "batch_rows"}
        return raw

    @field_validator("domains", "capabilities")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [value.name for value in values]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]!r} stands twice; names must differ")
        return values

    @field_validator("domains")
    @classmethod
    def _one_is_free(cls, values: tuple[DomainConfig, ...]) -> tuple[DomainConfig, ...]:
        if all(value.pinned for value in values):
            raise ValueError("every domain is pinned, so there is nothing to search; leave two of them free")
        return values

    @property
    def domain_names(self) -> list[str]:
        """Names of the domains, in file order."""
        return [domain.name for domain in self.domains]

    @model_validator(mode="after")
    def _gradients_of_losses(self) -> SearchConfig:
        judged = [capability.name for capability in self.capabilities if capability.metric is not None]
        if judged and self.gradients in {"implicit", "unrolled"}:
            raise ValueError(
                f"gradients are derivatives of losses, and {judged[0]} is judged by a metric; set gradients to none"
            )
        return self

    @model_validator(mode="after")
    def _readable_limits(self) -> SearchConfig:
        _ = self.limits
        return self

    @property
    def limits(self) -> Limits:
        """The limits as numbers with units, without the bounds of domains, which need the rows that there are."""
        unit, total, mode = self.budget.unit, self.budget.total, self.budget.mode
        if self.budget.steps and (mode == "free" or (unit == self.batch.unit and total is None)):
            unit, mode = self.batch.unit, "keep"  # as many steps as base are as much of what a step counts
        amount = Amount(float(total), unit) if total is not None else Amount(1.0, "share")
        budget = {"keep": Budget("keep"), "at_most": Budget("at most", amount), "free": Budget("free")}[mode]
        if mode == "keep" and total is not None:
            budget = Budget("exactly", amount)
        return Limits(
            budget=budget,
            budget_unit=unit,
            pinned={domain.name: None for domain in self.domains if domain.pinned},
            repeat_cap=self.constraints.max_repeat,
            groups=tuple(parse_comparison(text, self.domain_names) for text in self.constraints.groups),
            must_not_drop={c.name: c.must_not_drop for c in self.capabilities if c.must_not_drop is not None},
            protect=read_protection(self.protect, self.capability_names),
        )

    @property
    def kept_beside(self) -> Literal["rows", "tokens"] | None:
        """What else is kept at the base's total, so that the steps are, where the budget counts the other unit."""
        return self.batch.unit if self.budget.steps and self.limits.budget_unit != self.batch.unit else None

    @model_validator(mode="after")
    def _own_domains(self) -> SearchConfig:
        for capability in self.capabilities:
            if capability.domain is not None and capability.domain not in self.domain_names:
                raise ValueError(
                    f"capability {capability.name} names the domain {capability.domain!r}, and there is none; "
                    f"the domains are {', '.join(self.domain_names)}"
                )
        return self

    @property
    def own(self) -> tuple[int, ...]:
        """Number of each capability's own domain, -1 where it has none."""
        place = {name: number for number, name in enumerate(self.domain_names)}
        return tuple(place.get(c.domain or c.name, -1) for c in self.capabilities)

    @property
    def has_metrics(self) -> bool:
        """Whether a capability is judged by a metric."""
        return any(capability.metric is not None for capability in self.capabilities)

    @property
    def kinds(self) -> tuple[Literal["loss", "score", "cost"], ...]:
        """What each capability is judged by: its loss, a score (higher is better) or a cost (lower is better)."""
        return tuple(
            "loss" if c.metric is None else "score" if c.metric.higher_is_better else "cost" for c in self.capabilities
        )

    @property
    def capability_names(self) -> list[str]:
        """Names of the capabilities, in file order."""
        return [capability.name for capability in self.capabilities]


def rows_of(value: int | str | None, available: int, *, default: int, what: str) -> int:
    """Turn a count, '30%' or '2x' of the available rows into rows; `what` names the setting in an error."""
    if value is None:
        return default
    text = str(value).strip()
    try:
        if text.endswith("%"):
            rows = round(float(text[:-1]) / 100 * available)
        elif text.endswith(("x", "×")):
            rows = round(float(text[:-1]) * available)
        else:
            rows = int(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{what} is {value!r}; write {VOLUME}") from error
    if rows < 0:
        raise UsageError(f"{what} is {value!r}; a volume cannot be negative")
    return rows


def range_of(
    entry: DomainConfig, available: int, max_repeat: float, epochs: int = 1, left_out: int = 0
) -> tuple[int, int, int]:
    """Give a domain's rows in the base mixture, all epochs, and the fewest and the most, of the rows it has."""
    cap = int(max_repeat * available)
    once = rows_of(entry.base, available, default=available, what=f"base of {entry.name}")
    if available < once <= available + left_out:  # whoever counted the rows could not know which are left out
        once = available
    base = epochs * once
    if entry.pinned:
        lower = upper = base
    else:
        lower = rows_of(entry.min, available, default=0, what=f"min of {entry.name}")
        upper = rows_of(entry.max, available, default=cap, what=f"max of {entry.name}")
    if lower > upper and (entry.max is not None or lower <= cap):
        raise UserError(f"domain {entry.name}: min ({lower:,} rows) is above max ({upper:,} rows); swap or drop one")
    needed = max(base if not (entry.min or entry.max) else 0, lower)
    if needed > cap:
        raise UserError(
            f"domain {entry.name} needs {needed:,} rows of {available:,}, more than max_repeat "
            f"{max_repeat:g} allows; raise constraints.max_repeat, "
            f"lower base{' (or its epochs)' * (epochs > 1)} or min, or add rows"
        )
    return base, lower, min(upper, cap)


def load_config(path: str | Path) -> SearchConfig:
    """Read and check a run file; relative data paths are taken from the file's folder."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if _nodes(raw) > MOST_NODES:
            raise UsageError(f"{path} has more than {MOST_NODES:,} values, aliases (*name) counted; write it shorter")
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply for a run file, or holds itself; write it flat") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist; `ideal-proxy init FOLDER` writes one") from error
    except IsADirectoryError as error:
        if (path / "config.yaml").is_file():
            raise UsageError(f"{path} is a run directory; its run file is {path / 'config.yaml'}") from error
        raise UsageError(
            f"{path} is a folder, not a run file; `ideal-proxy init {path}` writes one for the rows in it"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        raise UsageError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from error
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise UsageError(f"{path} holds a value that cannot be read ({str(error)[:120]}); put it in quotes") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} must be a mapping with the keys domains and capabilities")
    if str(raw.get("format", "")).startswith("ideal-proxy/"):
        raise UsageError(f"{path} is a file that ideal-proxy wrote ({raw['format']}), not a run file; give mix.yaml")
    return parse_config(raw, where=str(path), folder=path.resolve().parent)


MOST_NODES = 100_000


def _nodes(value: Any, known: dict[int, int] | None = None) -> int:
    """Count the values of a file as if its aliases were written out."""
    known = {} if known is None else known
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_nodes(item, known) for item in items)
    return known[id(value)]


def parse_config(raw: dict[str, Any], *, where: str = "configuration", folder: Path | None = None) -> SearchConfig:
    """Check a run file that is already a mapping."""
    try:
        config = SearchConfig.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{where}: {first_problem(error, SearchConfig, raw)}") from error
    if folder is None:
        return config
    return config.model_copy(
        update={
            "domains": tuple(d.model_copy(update={"path": _absolute(d.path, folder)}) for d in config.domains),
            "capabilities": tuple(
                c.model_copy(update={"path": _absolute(c.path, folder), "metric": _placed(c.metric, folder)})
                for c in config.capabilities
            ),
            "proxy": config.proxy.model_copy(update={"model": _model_place(config.proxy.model, folder)}),
            "reuse": tuple(str((folder / Path(run).expanduser()).resolve()) for run in config.reuse),
        }
    )


def dump_config(config: SearchConfig) -> str:
    """Write a configuration as YAML that `load_config` reads back to the same settings."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _absolute(source: str, folder: Path) -> str:
    """Resolve a relative data path; leave demo: and hub sources as they are."""
    if source.startswith(("hf:.", "hf:~")):
        name, mark, query = source.removeprefix("hf:").partition("?")
        return f"hf:{(folder / Path(name).expanduser()).resolve()}{mark}{query}"
    if source.startswith(("demo:", "hf:")) or Path(source).is_absolute():
        return source
    path = folder / source
    if path.exists() or not any(c in source for c in "*?["):
        return str(path.resolve())
    return str(Path(glob.escape(str(folder))) / source)


def _placed(metric: MetricConfig | None, folder: Path) -> MetricConfig | None:
    """Say where a metric runs."""
    if metric is None:
        return None
    return metric.model_copy(update={"folder": str((folder / (metric.folder or ".")).resolve())})


def _model_place(name: str | None, folder: Path) -> str | None:
    """Resolve a model's folder; what is no folder beside the run file, and not written as one, is a hub id."""
    if name is None:
        return None
    place = folder / Path(name).expanduser()
    return str(place.resolve()) if name.startswith((".", "~")) or place.is_dir() else name
