"""A run that is judged by metrics too: its trained weights are saved first, so that a stop costs no second training.

Once trained and judged by loss, a run's losses, numbers and model are written; then each metric is measured and its
score written; then the run is complete and the model goes. A run that was stopped or failed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UserError
from ideal_proxy.metric_section import BUILT_IN, HARNESS, MetricConfig
from ideal_proxy.proxy import (
    MetricSpec,
    RowLosses,
    export_model,
    measure,
    read_row_losses,
    remove_model,
    write_row_losses,
)
from ideal_proxy.store import atomic_write_json, read_json
from ideal_proxy.swarm.context import ROW_LOSSES, TOKENIZER, RunSpec, SwarmContext, save_result, what_counts

TRAINED = "trained.json"
SCORES = "scores.json"
EXPORTED = "exported"


def metric_specs(config: SearchConfig, split: str) -> tuple[MetricSpec, ...]:
    """Return the metrics of a run file, as runs take them."""
    return tuple(
        metric_spec(c.metric, c.name, key=f"{split}-{j}", split=split, path=c.path, row_format=c.format)
        for j, c in enumerate(config.capabilities)
        if c.metric is not None and not c.metric.reported
    )


def metric_spec(
    metric: MetricConfig, name: str, *, key: str, split: str, path: str, row_format: str = "auto"
) -> MetricSpec:
    """Return one capability's metric; `path` is where its reference rows are."""
    built_in = "" if metric.score is None else metric.settings(BUILT_IN) | {"path": path, "format": row_format}
    return MetricSpec(
        key=key, capability=name, split=split, command=metric.command or "", python=metric.python or "",
        harness="" if metric.lm_eval is None else json.dumps(metric.settings(HARNESS), sort_keys=True),
        built_in=json.dumps(built_in, sort_keys=True) if built_in else "",
        folder=metric.folder or ".", timeout_seconds=metric.timeout_seconds, keep_model=metric.keep_models,
    )  # fmt: skip


def probe(
    specs: Sequence[MetricSpec],
    model: Any,
    tokenizer_folder: Path,
    *,
    device: str,
    keys: Callable[[str], Collection[int]] = lambda _: (),
) -> float:
    """Measure metrics once on a throw-away model, to learn what they take and that they work at all."""
    from transformers import AutoTokenizer

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ideal-proxy-") as place:
        exported = Path(place) / EXPORTED
        export_model(model, AutoTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True), exported)
        for spec in specs:
            measure(spec, exported, seed=0, device=device, keys=keys(spec.key) if spec.built_in else ())
    return time.monotonic() - started


def save_trained(
    folder: Path,
    context: SwarmContext,
    spec: RunSpec,
    losses: Mapping[str, RowLosses],
    metrics: Mapping[str, Any],
    model: Any,
) -> None:
    """Write the model and the losses of a trained run, until its metrics are measured."""
    from transformers import AutoTokenizer

    source = context.folder / TOKENIZER
    if not source.is_dir():
        raise UserError(f"{source} is missing, so no model can be handed to a metric; run the same search again")
    tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True)
    export_model(model, tokenizer, folder / EXPORTED)
    write_row_losses(folder / ROW_LOSSES, losses)
    atomic_write_json(
        folder / TRAINED,
        {"run": _identity(context, spec), "losses": list(losses), "metrics": dict(metrics)},
    )


def is_trained(folder: Path, context: SwarmContext, spec: RunSpec) -> bool:
    """Tell whether this run is trained and only its metrics are to be measured."""
    path = folder / TRAINED
    if not (spec.metrics and path.is_file() and (folder / EXPORTED).is_dir() and (folder / ROW_LOSSES).is_file()):
        return False
    return bool(read_json(path)["run"] == _identity(context, spec))


def measure_and_save(
    folder: Path, context: SwarmContext, spec: RunSpec, *, device: str, should_stop: Callable[[], bool] | None = None
) -> None:
    """Measure the metrics that are not measured yet, and complete the run."""
    kept = read_json(folder / TRAINED)
    scores = _scores(folder / SCORES, kept["run"])
    for metric in spec.metrics:
        if metric.key not in scores:
            keys = context.reference_rows(metric.key).keys.tolist() if metric.built_in else ()
            found = measure(
                metric, folder / EXPORTED, seed=spec.seed, device=device, should_stop=should_stop, keys=keys
            )
            scores[metric.key] = dataclasses.asdict(found)
            atomic_write_json(folder / SCORES, {"run": kept["run"], "scores": scores})
    losses = read_row_losses(folder / ROW_LOSSES, kept["losses"])
    spent = {"metric_seconds": sum(found["seconds"] for found in scores.values())}
    save_result(folder, context, spec, losses, {**kept["metrics"], **spent, "scores": scores})
    for name in (TRAINED, SCORES):
        (folder / name).unlink(missing_ok=True)
    if not any(metric.keep_model for metric in spec.metrics):
        remove_model(folder / EXPORTED)


def _scores(path: Path, run: Any) -> dict[str, dict[str, Any]]:
    """Read what was measured before the run was stopped."""
    if not path.is_file():
        return {}
    value = read_json(path)
    return dict(value["scores"]) if value["run"] == run else {}


def _identity(context: SwarmContext, spec: RunSpec) -> Any:
    """Return what a trained run depends on, as JSON gives it back."""
    return json.loads(json.dumps([context.fingerprint(), what_counts(spec)]))
