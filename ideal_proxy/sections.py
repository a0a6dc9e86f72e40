"""The blocks of the run file `mix.yaml`: every setting, its default and what it may be. Unknown keys are errors."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ideal_proxy.batching import Section
from ideal_proxy.errors import UNSEEN
from ideal_proxy.limits import plain_protection
from ideal_proxy.metric_section import MetricConfig

SIZES = ("0.1M", "1M", "3M", "10M")  # of scratch proxies, rising
ProxySize = Literal["0.1M", "1M", "3M", "10M"]


def on_dial(size: str) -> bool:
    """Tell whether one of a ladder's sizes is meant as a scratch size, not as a model's name."""
    return re.fullmatch(r"[\d.]+[MmBb]?", size) is not None


def size_name(size: str) -> str:
    """Name one of a ladder's sizes in tables and as a folder: itself, or the end of a pretrained model's name."""
    last = re.sub(r"[^\w.-]", "-", size.rstrip("/").rpartition("/")[2])
    return size if size in SIZES else last.strip(".")[:80] or "model"


Protect = Annotated[float | Literal["none"] | dict[str, float | Literal["none"]], BeforeValidator(plain_protection)]
VOLUME = "a count of rows (400), a share of the rows there are ('30%') or a multiple of them ('2x')"


def _volume(value: Any) -> Any:
    """Refuse what YAML reads as neither a whole number nor text: 0.5, a list."""
    if value is None or isinstance(value, (str, int)):
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


def _read_again(format: str) -> str:
    """Refuse columns and settings behind a format's name that are none: a mixture file may come from anybody."""
    written, _, settings = format.partition(" chat_template_kwargs:")
    try:
        if written.startswith("columns:"):
            ColumnsConfig.model_validate_json(written.removeprefix("columns:"))
        known = isinstance(json.loads(settings or "{}"), dict)
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise ValueError("holds columns or chat_template_kwargs that cannot be read")
    return format


Format = Annotated[
    str,
    Field(pattern=r"^(auto|alpaca|chat|prompt|columns:.+)( chat_template_kwargs:.+)?$"),
    AfterValidator(_read_again),
]  # columns: is written by `columns`


def _written(block: dict[Any, Any], name: str) -> str:
    """Write a block as JSON, which has no sets, bytes or dates."""
    try:
        return json.dumps(block, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"{name} holds more than text, numbers, true, false, lists and blocks; use quotes") from error


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
    enable_thinking: bool | None = Field(default=None, description="short for chat_template_kwargs")

    @model_validator(mode="before")
    @classmethod
    def _whole_format(cls, values: Any) -> Any:
        """Write columns and settings as a part of the format, which goes wherever the source goes."""
        if not isinstance(values, dict):
            return values
        own = values.get("chat_template_kwargs") or {}
        if isinstance(thinks := values.get("enable_thinking"), bool) and isinstance(own, dict):
            values = values | {"chat_template_kwargs": {"enable_thinking": thinks} | own, "enable_thinking": None}
        written, _, _ = str(values.get("format") or "auto").partition(" chat_template_kwargs:")
        if isinstance(values.get("columns"), dict):
            columns = {key: value for key, value in values["columns"].items() if value is not None}
            mapped = "columns:" + _written(columns, "columns")
            if written not in ("auto", mapped):
                raise ValueError("give either format or columns")
            written = mapped
        if isinstance(values.get("chat_template_kwargs"), dict):
            settings = _written(values["chat_template_kwargs"], "chat_template_kwargs")
            written += f" chat_template_kwargs:{settings}"
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
    min_gain: float = Field(default=0.005, gt=0, lt=0.5, description="a gain with its upper bound below is none")


SCRATCH_DEFAULTS: dict[str, Any] = {"size": "1M", "vocabulary": 4096, "warm_fraction": 0.15}
LARGEST_FRACTION = 0.85  # φ of scratch proxies


class ProxyConfig(Section):
    """The proxies: scratch models from a size dial, or a pretrained model, trained in full or as LoRA.

    A pretrained proxy brings its own size, vocabulary and template, and reserves no rows: those keys are None then.
    """

    mode: Literal["proxies", "target"] = Field(
        default="proxies",
        description="target: the model is the one to be fine-tuned; trained on few mixtures, others are imitated",
    )
    imitations: int | None = Field(
        default=None, ge=0, le=1000, description="of mode target: mixtures imitated; default: 2 for each anchor"
    )
    size: ProxySize | None = Field(default=None, description="scratch; default 1M")
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
    command: str | None = Field(
        default=None, min_length=1,
        description="your trainer, which trains model; {run}, {data}, {model}, {seed}, {device} and {learning_rate}",
    )  # fmt: skip
    export: str | None = Field(
        default=None, description="what command reads: a target of export, e.g. trl; default rows as JSONL"
    )
    timeout_seconds: float | None = Field(default=None, gt=0, description="a run of command is ended after so long")
    folder: str | None = Field(default=None, description="where command runs; default the run file's folder")

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
        if self.imitations is not None and self.mode != "target":
            raise ValueError("imitations is of mode: target; set that, or take it out")
        if self.command is None:
            for key in ("export", "timeout_seconds", "folder"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is for command, your own trainer; add that, or take it out")
        elif self.model is None:
            raise ValueError("command needs model: what it starts from, whose tokenizer counts tokens")
        elif not any(place in self.command for place in ("{run}", "{data}")):
            raise ValueError("the command must hold {data}, the rows to train on, or {run}, the run's folder")
        elif self.lora_rank is not None or self.gguf is not None:
            raise ValueError("lora_rank and gguf are for the built-in trainer; command has its own settings")
        elif self.mode == "target":
            raise ValueError("mode: target blends weights that the built-in trainer made; leave it or command out")
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

    sizes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="a ladder: scratch sizes, rising, or pretrained models of one family, the smallest first, in one "
        "fit; the last is predicted and checked",
    )
    runs: int | None = Field(
        default=None, ge=4, description="default 3(n+1) for n domains; with sizes of the last, or a list, one a size"
    )
    lower_runs: tuple[Annotated[int, Field(ge=4)], ...] = Field(
        default=(), description="with sizes: runs of each below the last; default: by what they cost"
    )
    seeds: int = Field(default=2, ge=2, le=5)
    spread: float = Field(default=2.0, gt=0, le=5, description="half-width of the design in log-volume")
    workers: int | None = Field(default=None, ge=1, description="default: one a core, or one a device")
    max_hours: float | None = Field(default=None, gt=0)
    engine: Literal["local", "ray", "slurm"] = Field(
        default="local", description="this machine, a Ray cluster that is there, or Slurm, a job a run"
    )
    address: str = Field(
        default="auto", description="of the Ray cluster: auto, HOST:PORT, or local to start one on this machine"
    )
    gpus: float = Field(default=0, ge=0, description="GPUs of a worker; on Ray a fraction where several share one")
    slurm: dict[str, str | int | float | bool | dict[str, Any] | list[str]] = Field(
        default={}, description="what submitit is told, e.g. {slurm_partition: gpu, timeout_min: 240}"
    )
    judge_rows: int | None = Field(
        default=None,
        ge=4,
        description="reference rows a capability that each proxy reads, at most; default: all of the search's half",
    )
    keep_weights: float = Field(
        default=64,
        ge=0,
        description="keep a run's weights up to so many MB (2 GB in all) for capabilities that come later; 0: none",
    )

    @model_validator(mode="before")
    @classmethod
    def _runs_of_sizes(cls, values: Any) -> Any:
        """Read a list of runs, one a size."""
        if not isinstance(values, dict) or not isinstance(runs := values.get("runs"), (list, tuple)):
            return values
        sizes = values.get("sizes") or ()
        if not sizes:
            raise ValueError(
                "a list of runs is for a ladder, one for each of sizes; without sizes runs is one number, 4 or more"
            )
        if not isinstance(sizes, (list, tuple)) or len(runs) != len(sizes):
            raise ValueError(f"runs lists {len(runs)} and sizes {len(sizes)}; give one number of runs for each size")
        if few := [number for number in runs if not isinstance(number, int) or number < 4]:
            raise ValueError(f"runs lists {few[0]!r}; every size needs a whole number of 4 or more")
        return {**values, "runs": runs[-1], "lower_runs": list(runs[:-1])}

    @model_validator(mode="after")
    def _with_effect(self) -> SwarmConfig:
        places = [SIZES.index(size) if size in SIZES else -1 for size in self.sizes]
        rising = sorted(set(places)) == places and places[:1] != [-1]
        if self.sizes and (len(self.sizes) < 2 or (any(map(on_dial, self.sizes)) and not rising)):
            raise ValueError(
                f"sizes is {', '.join(self.sizes)}; a ladder has two or more of {', '.join(SIZES)}, rising, or of "
                "pretrained models of one family"
            )
        names = [size_name(size).lower() for size in self.sizes]
        if twice := [size for size, name in zip(self.sizes, names, strict=True) if names.count(name) > 1]:
            raise ValueError(f"sizes names {' and '.join(twice)}, which a table could not tell apart; rename a folder")
        if self.lower_runs and len(self.lower_runs) != len(self.sizes) - 1:
            raise ValueError("lower_runs names the runs of each of sizes but the last; give as many, or leave it out")
        if self.engine == "local" and (self.address != "auto" or self.gpus):
            raise ValueError("address and gpus are for engine: ray or slurm; set that, or take them out")
        if self.engine != "slurm" and self.slurm:
            raise ValueError("slurm is for engine: slurm; set that, or take it out")
        return self


PAIRS, MOST_PAIRS = 3, 8


class VerifyConfig(Section):
    """The check of the proposal by fresh training runs, on rows that the search never saw."""

    pairs: int = Field(default=PAIRS, ge=2, description="fresh seeds at first")
    max_pairs: int = Field(default=MOST_PAIRS, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _no_larger_size(cls, values: Any) -> Any:
        """Read run files of earlier versions; a larger size is a ladder today."""
        if not isinstance(values, dict) or "larger_size" not in values:
            return values
        if (size := values["larger_size"]) is not None:
            raise ValueError(f"larger_size is a ladder today: give swarm: {{sizes: [SMALLER, {size}]}} in its place")
        return {key: value for key, value in values.items() if key != "larger_size"}

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, values: Any) -> Any:
        """Let one of the two numbers, given alone, take the other's default along."""
        if not isinstance(values, dict):
            return values
        pairs, most = values.get("pairs"), values.get("max_pairs")
        if isinstance(most, int) and "pairs" not in values and 2 <= most < PAIRS:
            return {**values, "pairs": most}
        if isinstance(pairs, int) and "max_pairs" not in values and pairs > MOST_PAIRS:
            return {**values, "max_pairs": pairs}
        return values

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
