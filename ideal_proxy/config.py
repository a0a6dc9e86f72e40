"""The run file `mix.yaml` as a whole: its blocks (`sections`), what must hold between them, and its reading."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from ideal_proxy.amounts import Amount, parse_comparison
from ideal_proxy.batching import BATCH_ROWS, MOST_ROWS, BaseConfig, Batch, BudgetConfig, Distinct, Loss, Section
from ideal_proxy.complaints import first_problem
from ideal_proxy.errors import MOST_SEED, UNSEEN, UsageError, UserError, shortened
from ideal_proxy.limits import PROTECT, Budget, Limits, read_protection
from ideal_proxy.metric_section import MetricConfig
from ideal_proxy.sections import (
    VOLUME,
    CapabilityConfig,
    ConstraintsConfig,
    CostConfig,
    DomainConfig,
    ObjectiveConfig,
    Protect,
    ProxyConfig,
    SwarmConfig,
    VerifyConfig,
    on_dial,
)
from ideal_proxy.store import file_size

FROZEN = "mixture:"  # before the path of a domain that is a frozen mixture


class SearchConfig(Section):
    """The whole run file."""

    name: str = Field(
        default="mix", max_length=80, pattern=rf"^\.*[^./\\{UNSEEN}][^/\\{UNSEEN}]*$", description="of its folder"
    )
    freeze: dict[str, str] = Field(
        default={}, description="{NAME: mixture.json}: a settled mixture as one domain whose inner shares stay"
    )
    reuse: tuple[str, ...] = Field(default=(), description="run directories of earlier searches whose runs count here")
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    domains: Annotated[tuple[DomainConfig, ...], Distinct] = Field(min_length=2)
    capabilities: Annotated[tuple[CapabilityConfig, ...], Distinct] = Field(min_length=1)
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
    rounds: int = Field(default=6, ge=1, le=10)
    gradients: Literal["auto", "implicit", "unrolled", "none"] = Field(
        default="auto", description="responses of the trained proxies that enter the fit; auto: where runs are few"
    )
    tracker: str | None = Field(
        default=None, description="package.module:function that is told how the search goes on; or wandb, mlflow, ..."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SearchConfig:
        sizes, size = self.swarm.sizes, self.proxy.model or self.proxy.size
        if sizes and size != sizes[-1]:
            raise ValueError(
                f"swarm.sizes ends with {sizes[-1]} and the proxies are {size}; the last size of a ladder is theirs: "
                f"leave proxy.{'model' if self.proxy.model else 'size'} out"
            )
        if sizes and self.proxy.command is not None:
            raise ValueError("give either a ladder (swarm.sizes) or proxy.command; your trainer trains one model")
        if sizes and self.proxy.mode == "target":
            raise ValueError("give either a ladder (swarm.sizes) or mode: target; on a ladder nothing is imitated")
        judged = [capability.name for capability in self.capabilities if capability.metric is not None]
        reported = [c.name for c in self.capabilities if c.metric is not None and c.metric.reported]
        if reported and self.proxy.command is None:
            raise ValueError(f"the metric of {reported[0]} is reported by proxy.command, and there is none")
        if judged and sizes:
            raise ValueError(
                f"swarm.sizes compares losses, and {judged[0]} is judged by a metric; leave one of them out"
            )
        if judged and self.gradients in {"implicit", "unrolled"}:
            raise ValueError(
                f"gradients are derivatives of losses, and {judged[0]} is judged by a metric; set gradients to none"
            )
        _ = self.limits  # an error where one cannot be read
        for capability in self.capabilities:
            if capability.domain is not None and capability.domain not in self.domain_names:
                raise ValueError(
                    f"capability {capability.name} names the domain {capability.domain!r}, and there is none; "
                    f"the domains are {', '.join(self.domain_names)}"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _empty_blocks(cls, raw: Any) -> Any:
        """Read a key whose lines are all commented out as not given, and proxy.batch_rows as batch."""
        if not isinstance(raw, dict):
            return raw
        raw = {key: value for key, value in raw.items() if value is not None}
        if isinstance(freeze := raw.get("freeze"), dict) and isinstance(raw.get("domains", ()), (list, tuple)):
            given = list(raw.get("domains", ()))
            names = {domain.get("name") for domain in given if isinstance(domain, dict)}
            frozen = [{"name": name, "path": f"{FROZEN}{path}"} for name, path in freeze.items() if name not in names]
            raw["domains"] = [*frozen, *given]
        if isinstance(swarm := raw.get("swarm"), dict) and (sizes := swarm.get("sizes")):
            proxy = raw.get("proxy") or {}
            if (
                isinstance(proxy, dict)
                and isinstance(sizes, (list, tuple))
                and not (proxy.get("size") or proxy.get("model"))
            ):
                raw["proxy"] = {**proxy, "size" if on_dial(str(sizes[-1])) else "model": sizes[-1]}
        proxy = raw.get("proxy")
        if isinstance(proxy, dict) and proxy.get("batch_rows") is not None:
            rows = proxy["batch_rows"]
            if raw.setdefault("batch", {"rows": rows}) != {"rows": rows}:
                raise ValueError("batch and proxy.batch_rows differ; leave proxy.batch_rows out")
            raw["proxy"] = {key: value for key, value in proxy.items() if key != "batch_rows"}
        return raw

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
    if rows > MOST_ROWS:
        raise UsageError(f"{what} is {shortened(repr(value))}; a volume has at most {MOST_ROWS:,} rows")
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


class _Loader(yaml.SafeLoader):
    """Reads a date as its text, and refuses a key that stands twice in a block: YAML takes the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused as a key later
            equal = {key.value}  # 1, 0x1 and true are one key, and so is what is written alike
            if key.tag.rpartition(":")[2] in {"int", "float", "bool", "null"}:
                equal.add(self.construct_object(key))
            if not seen.isdisjoint(equal):
                raise yaml.MarkedYAMLError(
                    problem=f"the key {shortened(repr(key.value))} stands twice", problem_mark=key.start_mark
                )
            seen |= equal
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file that a person wrote; `what` names its kind in an error."""
    try:
        if file_size(path) > MOST_BYTES:
            raise UsageError(f"{path} has more than {MOST_BYTES >> 10} KiB, which no {what} needs; give another")
        raw = yaml.load(path.read_bytes().decode("utf-8"), _Loader)
        if _nodes(raw) > MOST_NODES:
            raise UsageError(f"{path} has more than {MOST_NODES:,} values, aliases (*name) counted; write it shorter")
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply for a {what}, or holds itself; write it flat") from error
    except OverflowError as error:
        raise UsageError(f"{path} holds the number {error}, which is larger than any setting; correct it") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        raise UsageError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from error
    except (ValueError, LookupError, AttributeError) as error:  # a !!bool that is none, a number of 5,000 digits
        raise UsageError(f"{path} holds a value that cannot be read ({str(error)[:120]}); put it in quotes") from error
    return raw


def load_config(path: str | Path) -> SearchConfig:
    """Read and check a run file; relative data paths are taken from the file's folder."""
    path = Path(path)
    try:
        raw = read_yaml(path, "run file")
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist; `ideal-proxy init FOLDER` writes one") from error
    except IsADirectoryError as error:
        if (path / "config.yaml").is_file():
            raise UsageError(f"{path} is a run directory; its run file is {path / 'config.yaml'}") from error
        raise UsageError(
            f"{path} is a folder, not a run file; `ideal-proxy init {path}` writes one for the rows in it"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} must be a mapping with the keys domains and capabilities")
    if str(raw.get("format", "")).startswith("ideal-proxy/"):
        raise UsageError(f"{path} is a file that ideal-proxy wrote ({raw['format']}), not a run file; give mix.yaml")
    return parse_config(raw, where=str(path), folder=path.resolve().parent)


MOST_NODES = 100_000
MOST_BYTES = 1 << 17  # the parser takes seconds for so much


def _nodes(value: Any, known: dict[int, int] | None = None) -> int:
    """Count the values of a file as if its aliases were written out, and refuse numbers beyond any use."""
    known = {} if known is None else known
    if isinstance(value, int) and abs(value) > MOST_ROWS:
        raise OverflowError(shortened(str(value)))
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
    try:
        return _placed_in(config, folder)
    except (OSError, ValueError, RuntimeError) as error:  # a name of 300 letters, a null byte, ~nobody
        raise UsageError(f"{where}: a path cannot be read ({shortened(str(error), 200)}); correct it") from error


def _placed_in(config: SearchConfig, folder: Path) -> SearchConfig:
    """Take relative paths from the run file's folder."""
    return config.model_copy(
        update={
            "domains": tuple(d.model_copy(update={"path": _absolute(d.path, folder)}) for d in config.domains),
            "capabilities": tuple(
                c.model_copy(update={"path": _absolute(c.path, folder), "metric": _placed(c.metric, folder)})
                for c in config.capabilities
            ),
            "proxy": config.proxy.model_copy(update=_proxy_places(config.proxy, folder)),
            "swarm": config.swarm.model_copy(
                update={"sizes": tuple(s if on_dial(s) else str(model_place(s, folder)) for s in config.swarm.sizes)}
            ),
            "reuse": tuple(str((folder / Path(run).expanduser()).resolve()) for run in config.reuse),
        }
    )


def dump_config(config: SearchConfig) -> str:
    """Write a configuration as YAML that `load_config` reads back to the same settings."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _absolute(source: str, folder: Path) -> str:
    """Resolve a relative data path; leave demo: and hub sources as they are."""
    if source.startswith(FROZEN):
        return f"{FROZEN}{(folder / Path(source.removeprefix(FROZEN)).expanduser()).resolve()}"
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
    places = {"folder": str((folder / (metric.folder or ".")).resolve())}
    if metric.tasks is not None:
        places["tasks"] = str((folder / Path(metric.tasks).expanduser()).resolve())
    return metric.model_copy(update=places)


def _proxy_places(proxy: ProxyConfig, folder: Path) -> dict[str, Any]:
    """Say where a model lies, and where a command runs."""
    places = {"model": model_place(proxy.model, folder)}
    return places if proxy.command is None else places | {"folder": str((folder / (proxy.folder or ".")).resolve())}


def model_place(name: str | None, folder: Path) -> str | None:
    """Resolve a model's folder; what is no folder beside the run file, and not written as one, is a hub id."""
    if name is None:
        return None
    place = folder / Path(name).expanduser()
    return str(place.resolve()) if name.startswith((".", "~")) or place.is_dir() else name
