"""Hand a mixture of tagged rows to a trainer, and count what its own data pipeline draws in one epoch.

    python benchmarks/handover/run.py trl --python VENV/bin/python --record

Each trainer has an environment of its own; `ideal_proxy` is not in it. The export is made here, a loader in `loaders/`
runs there, and the rows, repeats and tokens with loss it saw are compared with the draw. Records `run.json` and
`run.md`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from problem import make

from ideal_proxy.batching import Batch
from ideal_proxy.data import read_rows
from ideal_proxy.export.encoded import Encoded, encode
from ideal_proxy.export.hand_over import export_mixture
from ideal_proxy.mixture import load_mixture

HERE = Path(__file__).resolve().parent
# What is run: target, its loader, and options of the export.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "trl": ("trl", {}), "trl-text": ("trl", {"text": True}), "trl-packed": ("trl", {"packed": True}),
    "llamafactory": ("llamafactory", {}), "llamafactory-text": ("llamafactory", {"text": True}),
    "ms-swift": ("ms-swift", {}),
    "axolotl": ("axolotl", {}), "axolotl-text": ("axolotl", {"text": True}),
    "automodel": ("automodel", {}), "verl": ("verl", {}),
    "skyrl": ("skyrl", {}),
    "streaming": ("streaming", {}), "hf": ("hf", {}), "interleave": ("interleave", {}),
}  # fmt: skip


SECONDS = 900  # of a loader
# No loader may wait for a network that is not there, or for processes that it does not need.
ALONE = {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1", "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled",
    "AXOLOTL_DATASET_NUM_PROC": "1", "AXOLOTL_DATASET_PROCESSES": "1",
}  # fmt: skip


HEAD = """# Mixtures in the trainers' own hands

`python benchmarks/handover/run.py RUN --python VENV/bin/python --record` for each line; an environment a trainer,
made by `python -m venv VENV` and `VENV/bin/pip install TRAINER`, torch 2.13.0 for the CPU, Linux x86_64, Python 3.11.

A mixture of four domains (2.50, 1.75, 0.62 and 1.38 passes) draws 391 rows of 230: short ones, talks of several turns,
rows that end with the user or open with the assistant or ask twice, and rows that are too long for a context of 96
tokens by their question, by their answer or by both. The trainer's own pipeline gives one epoch; every row carries a
tag. *Rows off* counts tagged rows that came more or less often than drawn. *Told* is what `counts.json` says, *search*
what the proxies train on.
"""
FOOT = """
ms-swift, verl, AutoModel and LLaMA-Factory's turns put loss on the line break after an answer's end mark too; they and
`axolotl-text` cut rows that are too long in their own way. `counts.json` counts both. Streaming and `interleave` give
turns. SkyRL was put into verl's environment, and what it imports of SkyRL-Gym was stood in for.

Not run: **open-instruct** is in no package index. **Megatron-Bridge** 0.6.2 needs Python 3.12 and
libraries of CUDA; put in without what it asks for, its builder does not import beside transformers 5: the names in
`mixture_blend.py` were compared with its classes. **NeMo-RL** is 0.0.0 in the index, a placeholder that says of itself
that it does not work; **NeMo AutoModel** is its SFT. **torchtitan** 0.3.0 has no export: its `ChatDataset` takes one
question and one answer, and drops what is too long.
"""


def expected(encoded: Encoded, names: list[str], sources: dict[str, str]) -> dict[str, int]:
    """How often each tagged row is drawn."""
    times: dict[str, int] = {}
    for name, drawn in zip(names, encoded.times, strict=True):
        for row, count in zip(read_rows(sources[name]), drawn.tolist(), strict=True):
            if count:
                times[row.messages[0].content.split(" ", 1)[0]] = count
    return times


def compare(run: str, python: str, folder: Path) -> dict[str, Any]:
    """Export, load in the trainer's environment, and compare."""
    target, options = RUNS[run]
    options = dict(options)
    packed = options.pop("packed", False)
    model, path = make(folder / "problem", batch=Batch(tokens=768) if packed else Batch(rows=8))
    mixture = load_mixture(path)
    told = export_mixture(mixture, target, folder / "out", model=str(model), **options)
    sources = {domain.name: domain.source for domain in mixture.domains}
    encoded = encode(mixture, sources, str(model), told.context)
    wanted = expected(encoded, list(sources), sources)
    loader = HERE / "loaders" / f"load_{target.replace('-', '_')}.py"
    env = {**os.environ, **ALONE, "HF_HOME": str(folder / "cache")}
    # An environment that may not keep its bytecode compiles torch at every start, for minutes.
    env = {key: value for key, value in env.items() if key not in {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}}
    command = [python, str(loader), str(folder / "out"), str(model)]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, text=True, env=env, check=False, cwd=folder,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as slow:
        said = (slow.stderr or b"").decode(errors="replace")[-3000:]
        sys.exit(f"{run}: the loader was ended after {SECONDS} s\n{said}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{run}: the loader ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    found = json.loads(lines[-1].removeprefix("RESULT "))
    ours = {draw.domain: draw.supervised_tokens for draw in told.draws}
    search = {name: c.supervised_tokens for name, c in zip(sources, encoded.counts("as the search"), strict=True)}
    got = collections.Counter(found["times"])
    off = [tag for tag in {*wanted, *got} if wanted.get(tag, 0) != got.get(tag, 0)]
    theirs = {name: found["supervised"].get(name, 0) for name in sources} if found["supervised"] else None
    return {
        "run": run, "versions": found["versions"], "rows_wanted": sum(wanted.values()), "rows_drawn": sum(got.values()),
        "tagged_rows_off": len(off), "off": {tag: [wanted.get(tag, 0), got.get(tag, 0)] for tag in sorted(off)[:12]},
        "repeats": [int(np.min(list(got.values()))), int(np.max(list(got.values())))],
        "supervised_by_the_search": search, "supervised_told": ours, "supervised_found": theirs,
        "long_rows": told.long, "notes": list(told.notes),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=list(RUNS))
    parser.add_argument("--python", default=sys.executable, help="the trainer's environment")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    parser.add_argument("--record", action="store_true", help="write the result to run.json and run.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        result = compare(args.run, args.python, args.keep or Path(scratch))
    print(json.dumps(result, indent=1))
    if args.record:
        record(result)


def record(result: dict[str, Any]) -> None:
    """Keep a result beside the others, and lay all of them out."""
    path = HERE / "run.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[result["run"]] = result
    kept = {run: kept[run] for run in RUNS if run in kept}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    head = ("run", "versions", "rows drawn / wanted", "rows off", "tokens with loss: found / told / search")
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|"]
    for run, found in kept.items():
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        sums = [
            "not counted" if found[key] is None else f"{sum(found[key].values()):,}"
            for key in ("supervised_found", "supervised_told", "supervised_by_the_search")
        ]
        lines.append(
            f"| {run} | {versions} | {found['rows_drawn']} / {found['rows_wanted']} | {found['tagged_rows_off']} | "
            f"{' / '.join(sums)} |"
        )
    (HERE / "run.md").write_text("\n".join([HEAD, *lines, FOOT]), encoding="utf-8")


if __name__ == "__main__":
    main()
