"""One worker of a swarm: takes runs as JSON lines, trains and judges the proxy, answers as JSON lines.

Started by `swarm` as `python -m ideal_proxy.swarm.worker`, so it never re-imports the caller's script. It ends when
its input does: no worker outlives its parent, however that ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from ideal_proxy.data import TokenRows
from ideal_proxy.errors import UserError
from ideal_proxy.proxy import (
    ProgramStopped,
    RowLosses,
    TrainingStopped,
    TrainLog,
    blend_weights,
    build_proxy,
    count_products,
    evaluate,
    load_weights,
    resolve_device,
    run_flops,
    save_weights,
    train,
    warm_start,
)
from ideal_proxy.store import is_complete
from ideal_proxy.swarm.context import (
    IMITATED,
    JUDGED,
    MODEL,
    WARM_RUN,
    WARM_WEIGHTS,
    RunSpec,
    SwarmContext,
    draw_run,
    load_context,
    save_result,
)
from ideal_proxy.swarm.metric_runs import is_trained, measure_and_save, save_trained

STEP_EVENT_SECONDS = 0.25


class Worker:
    """The state that a worker keeps between runs: mapped data and the channel to its parent."""

    def __init__(self, context: SwarmContext, run_dir: Path, device: torch.device, out: TextIO) -> None:
        self.context = context
        self.run_dir = run_dir
        self.device = device
        self.out = out
        self.stop = threading.Event()
        self._domains: list[TokenRows] | None = None
        self._references: dict[str, TokenRows] = {}

    def say(self, kind: str, **fields: Any) -> None:
        """Send one event to the parent."""
        self.out.write(json.dumps({"kind": kind, **fields}) + "\n")
        self.out.flush()

    def run(self, spec: RunSpec, checkpoint_seconds: float) -> None:
        """Train and judge one proxy (role "warm": make the warm start), and write its folder."""
        context = self.context
        folder = self.run_dir / "runs" / spec.id
        folder.mkdir(parents=True, exist_ok=True)
        if is_trained(folder, context, spec):  # trained before it was stopped
            self._judge(folder, spec)
            return
        if context.trainer and spec.role != JUDGED and sum(spec.rows):
            self._by_command(folder, spec)
            return
        started = time.monotonic()
        last = 0.0

        def on_step(done: int, steps: int, loss: torch.Tensor) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= STEP_EVENT_SECONDS or done == steps:
                last = now
                value = float(loss)  # waits for the device, but only this often
                self.say("step", run=spec.id, done=done, steps=steps, loss=value if np.isfinite(value) else None)

        model = build_model(context, parts=max(1, len(spec.blend)))
        if context.warm and spec.role != "warm":
            warm = self.run_dir / "runs" / WARM_RUN
            if not is_complete(warm):
                raise UserError("the warm start is not there yet; run the swarm's 'warm' run first")
            load_weights(model, warm / MODEL)
        model.to(self.device)
        settings = dataclasses.replace(context.train, learning_rate=spec.learning_rate)
        options: dict[str, Any] = {
            "checkpoint_dir": folder, "checkpoint_seconds": checkpoint_seconds,
            "on_step": on_step, "should_stop": self.stop.is_set,
        }  # fmt: skip
        log: TrainLog | None = None
        if spec.role == "warm" and context.warm_from:
            load_weights(model, context.folder / WARM_WEIGHTS)
        elif spec.role == JUDGED:
            load_weights(model, folder / MODEL)
        elif spec.role == IMITATED:
            parts = [(self.run_dir / "runs" / run / MODEL, share) for run, share in spec.blend]
            blend_weights(model, parts, context.lora_rank)
        elif spec.role == "warm":
            log = warm_start(
                model, context.domains, context.reserved_rows(), settings,
                seed=spec.seed, tokens_per_domain=context.warm_tokens, **options,
            )  # fmt: skip
        elif sum(spec.rows):  # the empty mixture is the warm start or the pretrained model, judged as it is
            if self._domains is None:
                self._domains = context.domain_rows()
            order = draw_run(context, self._domains, spec)
            log = train(model, order, self._domains, settings, **options)
        trained = time.monotonic()
        losses = self._losses(model, spec)
        if spec.save_model or spec.role == "warm":
            save_weights(model, folder / MODEL)
        curve = [] if log is None else [round(float(x), 6) for x in log.losses]
        trained_on = (log.tokens, log.supervised_tokens, log.token_pairs) if log else (0, 0, 0)
        read = [(self._reference(name).lengths, int(value.tokens.sum())) for name, value in losses.items()]
        metrics = {
            "rows": log.rows if log else 0, "tokens": log.tokens if log else 0,
            "supervised_tokens": log.supervised_tokens if log else 0, "steps": len(curve),
            "steps_resumed": log.steps_resumed if log else 0, "train_loss": curve,
            "flops": run_flops(count_products(model), *trained_on, read),
            "train_seconds": trained - started, "evaluate_seconds": time.monotonic() - trained,
        }  # fmt: skip
        self._finish(folder, spec, losses, metrics, model)

    def _by_command(self, folder: Path, spec: RunSpec) -> None:
        """Let the user's trainer make a run, and complete it."""
        from ideal_proxy.swarm.command_runs import WORK, do_command  # loads the exports, which no other run needs

        try:
            losses, metrics, model = do_command(
                self.context, folder, spec, self.device, judge=self._losses, should_stop=self.stop.is_set
            )
        except ProgramStopped:
            raise TrainingStopped from None
        self._finish(folder, spec, losses, metrics, model)
        shutil.rmtree(folder / WORK, ignore_errors=True)

    def _finish(
        self, folder: Path, spec: RunSpec, losses: dict[str, RowLosses], metrics: dict[str, Any], model: Any
    ) -> None:
        """Measure the metrics of a trained run where it has some, and complete it."""
        if spec.metrics:
            save_trained(folder, self.context, spec, losses, metrics, model)
            self._judge(folder, spec)
            return
        save_result(folder, self.context, spec, losses, metrics)
        self.say("finished", run=spec.id)

    def _losses(self, model: Any, spec: RunSpec) -> dict[str, RowLosses]:
        """Judge a model on every reference set of a run."""
        names = spec.references or self.context.references
        return judged(model, self.context, {name: self._reference(name) for name in names})

    def _judge(self, folder: Path, spec: RunSpec) -> None:
        """Measure the metrics of a trained run, and complete it."""
        try:
            measure_and_save(folder, self.context, spec, device=str(self.device), should_stop=self.stop.is_set)
        except ProgramStopped:
            raise TrainingStopped from None
        self.say("finished", run=spec.id)

    def _reference(self, name: str) -> TokenRows:
        """Map a reference set once."""
        if name not in self._references:
            self._references[name] = self.context.reference_rows(name)
        return self._references[name]

    def serve(self) -> None:
        """Take runs until the input ends."""
        tasks: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, args=(tasks,), daemon=True).start()
        self.say("ready", pid=os.getpid())
        while True:
            task = tasks.get()
            self.stop.clear()
            spec = RunSpec.from_json(task["spec"])
            self.say("started", run=spec.id)
            try:
                self.run(spec, float(task["checkpoint_seconds"]))
            except TrainingStopped:
                self.say("stopped", run=spec.id)
            except Exception as error:  # one run's failure must not end the worker
                full = _is_disk_full(error)
                message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self.say("failed", run=spec.id, message=message, trace=traceback.format_exc()[-4000:], disk_full=full)

    def _listen(self, tasks: queue.Queue[dict[str, Any]]) -> None:
        """Read the parent's lines; the end of the input is the end of this process."""
        for line in sys.stdin:
            message = json.loads(line)
            if message.get("stop"):
                self.stop.set()
            else:
                tasks.put(message)
        os._exit(0)


def judged(model: Any, context: SwarmContext, references: Mapping[str, TokenRows]) -> dict[str, RowLosses]:
    """Judge a model on reference sets."""
    train = context.train
    autocast = torch.bfloat16 if train.dtype == "bfloat16" else None
    losses = {
        name: evaluate(model, rows, batch_tokens=train.micro_batch_tokens, autocast=autocast)
        for name, rows in references.items()
    }
    if not all(np.isfinite(value.loss_sum).all() for value in losses.values()):
        raise UserError("a reference loss is not finite; choose a smaller learning rate")
    return losses


def build_model(context: SwarmContext, *, parts: int = 1) -> Any:
    """Build the model that every run of a context begins with, on the CPU, before any warm start."""
    # A LoRA that is made of several holds them side by side.
    if not context.base:
        return build_proxy(context.size, context.vocab_size, context.context, context.init_seed)
    from ideal_proxy.proxy import build_pretrained_proxy

    return build_pretrained_proxy(
        context.base_folder, lora_rank=context.lora_rank and parts * context.lora_rank, seed=context.init_seed,
        trust_remote_code=context.trust_remote_code,
    )  # fmt: skip


def _is_disk_full(error: BaseException | None) -> bool:
    """Tell whether a full disk or quota stands behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        error = error.__cause__ or error.__context__
    return False


def main(worker: type[Worker] = Worker) -> None:
    """Serve the parent process; `worker` is the class that does the runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    settings = json.loads(sys.argv[1])
    # Libraries may print: their words go to the log, the protocol keeps its own channel.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if settings["cores"] and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, settings["cores"])
    context = load_context(settings["context"])
    torch.set_num_threads(context.threads)
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    device = resolve_device(context.device, settings["worker"])
    worker(context, Path(settings["run_dir"]), device, out).serve()


if __name__ == "__main__":
    main()
