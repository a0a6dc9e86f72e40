"""Metrics at full size: the run file says what they are, and a score stands for its capability as in the search.

A mixture file names its metrics but never runs them: whoever scales up gives the run file (`--metrics mix.yaml`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.config import SearchConfig, load_config
from ideal_proxy.errors import UsageError
from ideal_proxy.mixture import MixtureFile
from ideal_proxy.pipeline import Scored
from ideal_proxy.proxy import Items, measure
from ideal_proxy.response import Yardstick
from ideal_proxy.scaleup.run import RunLosses
from ideal_proxy.scaleup.source import ScaleData
from ideal_proxy.store import atomic_write_json, read_json
from ideal_proxy.swarm import metric_spec
from ideal_proxy.terminal import Reporter

SCORES = "scores.json"
Arm = tuple[Sequence[RunLosses], Sequence[Path]]  # runs, and the folders they lie in


@dataclass(frozen=True, slots=True)
class ArmScores:
    """What the metrics gave for mixture and base, by the capability's number, a run an entry."""

    named: Mapping[int, str]
    yardstick: Yardstick
    mixture: Mapping[int, Sequence[Scored]]
    base: Mapping[int, Sequence[Scored]]  # empty where base was not trained


def read_metrics(path: Path, mixture: MixtureFile) -> SearchConfig:
    """Read the run file that says how capabilities are judged."""
    config = load_config(path / "config.yaml" if path.is_dir() else path)
    known = {capability.name for capability in mixture.capabilities}
    judged = [c.name for c in config.capabilities if c.metric is not None and not c.metric.reported]
    if not known & set(judged):
        raise UsageError(
            f"--metrics {path}: no capability of the mixture file ({', '.join(sorted(known))}) has a metric there that "
            "can be measured on a model; give the search's run file, or leave it out"
        )
    return config


def measure_arms(
    config: SearchConfig, mixture: MixtureFile, data: ScaleData, arms: Mapping[str, Arm], seeds: Sequence[int],
    device: str, reporter: Reporter,
) -> ArmScores:  # fmt: skip
    """Measure what is not measured yet; scores lie beside each run."""
    metrics = {c.name: c for c in config.capabilities if c.metric is not None and not c.metric.reported}
    found: dict[str, dict[int, list[Scored]]] = {"mixture": {}, "base": {}}
    wanted = [(j, c) for j, c in enumerate(mixture.capabilities) if c.name in metrics]
    with reporter.work("metrics", len(wanted) * sum(len(folders) for _, folders in arms.values())) as update:
        done = 0
        for arm, (_, folders) in arms.items():
            for folder, seed in zip(folders, seeds, strict=True):
                for j, capability in wanted:
                    scored = _score(metrics[capability.name], data, j, folder, seed, device)
                    found[arm].setdefault(j, []).append(scored)
                    update(done := done + 1)
    base = found["base"] or found["mixture"]
    kinds, scales = ["loss"] * len(mixture.capabilities), np.full(len(mixture.capabilities), np.nan)
    for j, capability in wanted:
        metric = metrics[capability.name].metric
        assert metric is not None
        kinds[j] = "score" if metric.higher_is_better else "cost"
        told = capability.metric.scale if capability.metric is not None else None
        own = metric.scale if isinstance(metric.scale, float) else None
        scales[j] = told or own or abs(float(np.mean([run.score for run in base[j]]))) or 1.0
    named = {j: metrics[c.name].metric.named for j, c in wanted}  # type: ignore[union-attr]
    yardstick = Yardstick(tuple(kinds), scales)  # type: ignore[arg-type]
    return ArmScores(named, yardstick, found["mixture"], found["base"])


def _score(capability: Any, data: ScaleData, j: int, folder: Path, seed: int, device: str) -> Scored:
    """Measure one metric of one run, on the items that the search never saw; once."""
    spec = metric_spec(
        capability.metric, capability.name, key=f"verify-{j}", split="verify", path=capability.path,
        row_format=capability.format,
    )  # fmt: skip
    path, identity = folder / SCORES, json.loads(json.dumps(spec.identity))
    kept: dict[str, Any] = read_json(path) if path.is_file() else {}
    if kept.get(spec.capability, {}).get("metric") != identity:
        keys = data.references[j].keys[data.verify[j]].tolist() if spec.built_in else ()
        measured = measure(spec, folder / "model", seed=seed, device=device, keys=keys)
        kept[spec.capability] = dataclasses.asdict(measured) | {"metric": identity}
        atomic_write_json(path, kept)
    entry = kept[spec.capability]
    return Scored(float(entry["score"]), None if entry["items"] is None else Items.from_json(entry["items"]))
