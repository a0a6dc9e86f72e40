"""The bench of a search: does proxy runs that are not done yet, and says what all of them measured and cost.

Legend: R runs, D domains, J capabilities.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ideal_proxy.config import SearchConfig
from ideal_proxy.errors import UserError
from ideal_proxy.hooks import Tracker
from ideal_proxy.pipeline.context import cluster, make_context, reference
from ideal_proxy.pipeline.live import Watcher
from ideal_proxy.pipeline.plan_cost import Plan, gradient_method
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.reuse import Reuse
from ideal_proxy.pipeline.row_record import Heritage
from ideal_proxy.pipeline.run_table import run_table, table_cost
from ideal_proxy.pipeline.stage import Stage, stage_text
from ideal_proxy.pipeline.status_record import StatusRecord
from ideal_proxy.proxy import MetricSpec
from ideal_proxy.swarm import Run, RunSpec, Swarm, SwarmEvent, load_result, metric_specs
from ideal_proxy.terminal import Reporter

Array = NDArray[np.float64]

SEED_STRIDE = 100_000  # searches with different seeds share no permutation
MOST_FAILED = 1 / 3
WEIGHTS_BYTES = 2e9  # of all runs whose weights are kept
# A checkpoint holds 12 bytes a trained weight: writing it every so many seconds costs a few percent of the time.
CHECKPOINT_SECONDS, CHECKPOINT_RATE = 30.0, 1e6


class Bench:
    """Does runs, each once, and remembers their results and what they were for."""

    def __init__(
        self,
        config: SearchConfig,
        prepared: Prepared,
        plan: Plan,
        folder: Path,
        reporter: Reporter,
        record: StatusRecord,
        tracker: Tracker | None = None,
        lower: str = "",
        reuse: Reuse | None = None,
        heritage: Heritage | None = None,
    ) -> None:
        self.lower = lower  # one of a ladder's sizes below the last, "" for a search's own
        self.lower_cost: dict[str, float] = {}
        self.reused = reuse.runs if reuse else None
        self.tracker = tracker
        self.config = config
        self.prepared = prepared
        self.plan = plan
        self.folder = folder
        self.reporter = reporter
        self.record = record
        self.watcher = Watcher(config, folder, reporter, record)
        self.context = make_context(config, prepared, plan, folder / "swarm", heritage)
        self._results: dict[str, Run] = {}
        self._roles: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self.gradients, self.gradients_why = gradient_method(config, plan)
        worker = "ideal_proxy.gradients.worker" if self.gradients else "ideal_proxy.swarm.worker"
        self._swarm = Swarm(
            self.context, folder, workers=plan.workers, worker=worker,
            pool=cluster(config, self.context, folder, worker),
            checkpoint_seconds=max(CHECKPOINT_SECONDS, (plan.trainable_parameters or 0) / CHECKPOINT_RATE),
        )  # fmt: skip

    def __enter__(self) -> Self:
        """Return self; workers start with the first run."""
        self._swarm.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End the workers."""
        self._swarm.__exit__(*error)

    def is_base(self, rows: NDArray[np.int64]) -> bool:
        """Tell whether a proxy trained on a mixture would be one trained on base."""
        return self._spec(rows, 0, "design", 1.0).rows == self._spec(self.prepared.domains.base, 0, "design", 1.0).rows

    def seconds_of_check(self) -> float:
        """Return the mean seconds of one run of the check."""
        return float(np.mean([r.seconds for run, r in self._results.items() if self._roles[run] == "verify"]))

    def scripts(self) -> dict[str, set[str]]:
        """Say which versions of each metric's script were seen."""
        found: dict[str, set[str]] = {}
        for result in self._results.values():
            for key, entry in result.metrics.get("scores", {}).items():
                name = self.prepared.capability_names[int(key.rpartition("-")[2])]
                found.setdefault(name, set()).add(str(entry["script"]))
        return found

    def frame(self) -> pd.DataFrame:
        """Return a table of all runs: role, seed, rate, volumes, losses, cost."""
        return run_table(
            self.prepared, self._results, self._roles, self.reused, self.plan.rates[0],
            with_metrics=self.config.has_metrics,
        )  # fmt: skip

    def cost(self) -> dict[str, Any]:
        """Add up what the search trained."""
        found = table_cost(self.frame(), with_gradients=bool(self.gradients))
        return found | {key: found[key] + value for key, value in self.lower_cost.items()}

    def failures(self) -> list[str]:
        """Say which runs failed for good."""
        return [f"run {run} failed twice and was left out: {message}" for run, message in self._failures.items()]

    def _seed(self, number: int) -> int:
        return self.config.seed * SEED_STRIDE + number

    def _seeds(self, number: int) -> list[int]:
        """Return the seeds of a round; those of a later one are fresh, so that its centre is not judged by its own."""
        first = number * self.config.swarm.seeds
        return [self._seed(first + s) for s in range(self.config.swarm.seeds)]

    def _spec(
        self, volumes: Iterable[float], seed: int, role: str, rate: float, *, keep: bool = False,
        anchor: bool = False, ends: Sequence[str] = (),
    ) -> RunSpec:  # fmt: skip
        """Describe a run; its id is made of what its numbers depend on, so that equal runs are done once."""
        seed = int(seed)
        full = np.asarray(list(volumes), dtype=float)
        rows = np.rint(full * self.plan.fraction).astype(int)
        halves = ("search", "verify") if role == "verify" else ("search",)
        references = tuple(reference(j, half) for half in halves for j in range(len(self.prepared.capabilities)))
        metrics = self._metrics("verify" if role == "verify" else "search")
        judged = [[metric.identity for metric in metrics]] if metrics else []
        content = json.dumps([rows.tolist(), seed, rate, references, *judged, *ends])
        return RunSpec(
            id=hashlib.sha256(content.encode()).hexdigest()[:16],
            rows=tuple(int(x) for x in rows),
            volumes=tuple(float(x) for x in rows / self.plan.fraction),
            seed=seed,
            role=role,
            learning_rate=rate,
            references=references,
            save_model=not ends and ((keep and self.gradients == "implicit") or self._keeps_weights(anchor)),
            metrics=metrics,
            blend=tuple((run, 1 / len(ends)) for run in ends),
            timeout_seconds=self.config.proxy.timeout_seconds,
        )

    def _keeps_weights(self, anchor: bool) -> bool:
        """Whether a run's weights are kept: for imitations, or for capabilities that come later."""
        if self.config.proxy.mode == "target" and anchor:
            return True
        if self.config.proxy.command is not None:  # what a trainer of one's own leaves may be of any kind
            return False
        each = 4.0 * (self.plan.trainable_parameters or self.plan.parameters)
        most = self.plan.runs + self.plan.more_runs * (self.plan.rounds - 1)
        return each <= 1e6 * self.config.swarm.keep_weights and each * most <= WEIGHTS_BYTES

    def _metrics(self, split: str) -> tuple[MetricSpec, ...]:
        """Say what a run's proxy is judged by besides its losses; a check's run judges on the items kept for it."""
        return metric_specs(self.config, split)

    def _run(
        self, stage: Stage, specs: Sequence[RunSpec], *, role: str, needed: bool = True, number: int | None = None
    ) -> None:
        """Do the runs that are not done, with progress, and keep their results; rounds count from 0 here."""
        at = None if number is None or self.lower else number + 1
        label = f"{self.lower} proxies: {stage}" if self.lower else stage_text(stage, at)
        stage = Stage.LOWER_SIZES if self.lower else stage
        missing = [spec for spec in specs if spec.id not in self._results and spec.id not in self._failures]
        if missing:
            self.record.stage(stage, at)
            with self.reporter.work(label, 1.0) as update:

                def on_event(event: SwarmEvent) -> None:
                    update(event.fraction, f"{event.runs_done} of {event.runs} runs", event.seconds_left)
                    self.record.event(event)
                    if event.kind == "finished":
                        self._tell(event)
                        self._watch(event.run, specs if role == "design" else ())
                    if event.kind in {"retried", "failed"}:
                        self.reporter.note(f"warning: run {event.run} {event.kind}: {event.message}")
                    elif event.kind == "waiting":
                        self.reporter.note(event.message)

                outcome = self._swarm.run(missing, on_event=on_event)
            self._results |= outcome.results
            self._failures |= outcome.failures
        failed = [spec.id for spec in specs if spec.id in self._failures]
        if needed and len(failed) > MOST_FAILED * len(specs):
            raise UserError(
                f"{label}: {len(failed)} of {len(specs)} runs failed ({self._failures[failed[0]]}); "
                "finished runs are kept: put the cause right and run the same command again, or with another --out if "
                "the run file has to change"
            )
        for spec in specs:
            if spec.id in self._results and self._roles.get(spec.id) != "design":
                self._roles[spec.id] = role

    def _watch(self, run: str, specs: Sequence[RunSpec]) -> None:
        """Say on a terminal's panel what a finished run tells; `specs` are the fit's runs in this stage."""
        if not self.watcher.on:
            return
        self.watcher.time()
        kept = {spec.id for spec in specs} | {name for name, role in self._roles.items() if role == "design"}
        done = [self._results[name] for name in kept if name in self._results]
        done += [load_result(self.folder, run)] if run in kept and run not in self._results else []
        if done:
            base = self._spec(self.prepared.domains.base, 0, "design", 1.0).rows
            self.watcher.evidence([(result, self._search_losses(result)) for result in done], base)

    @property
    def _by_loss(self) -> NDArray[np.bool_]:
        """Which capabilities are judged by their loss, (J,)."""
        return np.array([capability.metric is None for capability in self.config.capabilities])

    def _values(self, result: Run) -> Array:
        """Return what each capability is judged by in the search, shape (J,): its metric, or its loss."""
        values = self._search_losses(result)
        for j, capability in enumerate(self.config.capabilities):
            if capability.metric is not None:
                key, reported = reference(j, "search"), capability.metric.reported
                values[j] = result.scores.get(key, np.nan) if reported else result.scores[key]
        return values

    def _tell(self, event: SwarmEvent) -> None:
        """Say to the tracker that a run finished."""
        if not self.tracker:
            return
        result = load_result(self.folder, event.run)
        names = zip(self.prepared.domains.names, result.spec.volumes, strict=True)
        self.tracker.tell(
            "run finished", run=event.run, role=result.spec.role, seed=result.spec.seed,
            learning_rate=result.spec.learning_rate, rows={name: round(volume) for name, volume in names},
            loss=dict(zip(self.prepared.capability_names, map(float, self._search_losses(result)), strict=True)),
            tokens=result.metrics["tokens"],
            seconds=result.metrics["train_seconds"] + result.metrics["evaluate_seconds"],
        )  # fmt: skip

    def _search_losses(self, result: Run) -> Array:
        return np.array([result.losses[reference(j, "search")].mean for j in range(len(self.prepared.capabilities))])
