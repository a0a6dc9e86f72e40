"""A swarm worker that counts instead of training, so that tests of the scheduling start in a moment: no torch.

It speaks the protocol of `swarm.worker`. A step mixes one drawn row's key into a number that starts from the warm
start's; the number is what the run is judged by, so a lost or repeated step, other rows or another start change it.
A step takes `learning_rate` seconds. Every step goes to a checkpoint. Each step done is a line of `$COUNTED`. Where
`$GATE` is set, a run of more than `GATE_STEP` steps, but for the warm start, waits there until that file exists.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ideal_proxy.proxy.records import RowLosses
from ideal_proxy.store import atomic_write_json, is_complete, read_json
from ideal_proxy.swarm.context import MODEL, WARM_RUN, RunSpec, SwarmContext, draw_run, load_context, save_result

PRIME = 2**61 - 1
GATE_STEP = 60
STOP = threading.Event()


def say(kind: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
    sys.stdout.flush()


def listen(tasks: queue.Queue[Any]) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        STOP.set() if message.get("stop") else tasks.put(message)
    os._exit(0)


def run(context: SwarmContext, run_dir: Path, spec: RunSpec) -> None:
    folder, warm = run_dir / "runs" / spec.id, run_dir / "runs" / WARM_RUN
    if spec.role == "warm":
        keys = np.concatenate([rows.keys for rows in context.reserved_rows()])
        state = 1
    else:
        assert is_complete(warm), "the warm start is missing"
        domains = context.domain_rows()
        keys = np.array([domains[d].keys[r] for d, r in zip(*draw_run(context, domains, spec), strict=True)])
        state = int((warm / MODEL).read_text())
    checkpoint = folder / "checkpoint.safetensors"
    done = 0
    if checkpoint.exists():
        done, state = read_json(checkpoint).values()
    resumed = done
    while done < len(keys):
        time.sleep(spec.learning_rate)
        state = (state * 31 + int(keys[done])) % PRIME
        done += 1
        if (log := os.environ.get("COUNTED")) is not None:
            with open(log, "a") as file:
                file.write(f"{spec.id} {done}\n")
        atomic_write_json(checkpoint, {"done": done, "state": state})
        say("step", run=spec.id, done=done, steps=len(keys), loss=1.0)
        gate = os.environ.get("GATE") if spec.role != "warm" and done == GATE_STEP else None
        while gate is not None and not Path(gate).exists() and not STOP.is_set():
            time.sleep(0.2)
            say("step", run=spec.id, done=done, steps=len(keys), loss=1.0)
        if STOP.is_set():
            say("stopped", run=spec.id)
            return
    checkpoint.unlink(missing_ok=True)
    if spec.role == "warm":
        (folder / MODEL).write_text(str(state))
    losses = {name: RowLosses(np.array([state / PRIME]), np.array([1])) for name in context.references}
    seconds = {"train_seconds": 0.0, "evaluate_seconds": 0.0, "tokens": 0}
    save_result(folder, context, spec, losses, {"train_loss": [], "steps": done, "steps_resumed": resumed, **seconds})
    say("finished", run=spec.id)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = json.loads(sys.argv[1])
    context = load_context(settings["context"])
    tasks: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=listen, args=(tasks,), daemon=True).start()
    say("ready", pid=os.getpid())
    while True:
        task = tasks.get()
        STOP.clear()
        spec = RunSpec.from_json(task["spec"])
        (Path(settings["run_dir"]) / "runs" / spec.id).mkdir(parents=True, exist_ok=True)
        say("started", run=spec.id)
        run(context, Path(settings["run_dir"]), spec)


if __name__ == "__main__":
    main()
