"""How much memory `check` needs to say what occurs twice among very many rows.

    python benchmarks/speed/duplicates_memory.py 1000000 10000000

Each size in a process of its own: random fingerprints in four domains, half of whose prompts are asked with thoughts.
Memory is resident, less that after the imports. Printed; recorded in `check_speed.md`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PARTS = 100


def resident(name: str) -> float:
    """Give resident memory in MiB, by its name in Linux."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1024


def measure(rows: int) -> str:
    """Fill a finder with as many fingerprints, and ask it."""
    from ideal_proxy.data.duplicates import DuplicateFinder

    finder, rng, before = DuplicateFinder(list("abcd"), {}), np.random.default_rng(0), resident("VmRSS")
    for part in range(PARTS):
        for kept in (finder._whole["abcd"[part % 4]], (finder._thinking, finder._others)[part % 2]):
            kept.frombytes(rng.integers(0, 1 << 63, rows // PARTS, dtype=np.uint64).tobytes())
        finder._off.extend(bytes(rows // PARTS if part % 2 else 0))
    kept_mib, began = resident("VmRSS") - before, time.process_time()
    assert not finder.report().between
    peak, seconds = resident("VmHWM") - before, time.process_time() - began
    return (
        f"{rows:,} rows: {kept_mib:.0f} MiB kept, peak {peak:.0f} MiB "
        f"({peak * 2**20 / rows:.0f} bytes a row), {seconds:.1f} CPU s"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(measure(int(sys.argv[1])))
    for size in sys.argv[1:] if len(sys.argv) > 2 else ():
        subprocess.run([sys.executable, __file__, size], check=True)
