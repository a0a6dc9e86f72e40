"""Nothing outlives the process that started it, and nothing of the current folder is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import environment, gone

METRIC = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open("pids", "w").write(f"{os.getpid()} {child.pid} ")
time.sleep(300 if sys.argv[1] == "stay" else 0)
print(1.0)
"""
MEASURE = """
import sys
from pathlib import Path
from ideal_proxy.proxy.metric import MetricSpec, measure
spec = MetricSpec(key="k", capability="c", split="search", command=f"python metric.py {sys.argv[1]}", folder=".")
measure(spec, Path("."), seed=0)
"""


def processes(folder: Path) -> list[int]:
    """Wait for the two processes of the metric to have said who they are."""
    for _ in range(600):
        if (folder / "pids").exists() and (folder / "pids").read_text().endswith(" "):
            return [int(pid) for pid in (folder / "pids").read_text().split()]
        time.sleep(0.05)
    raise AssertionError("the metric did not start")


def all_gone(pids: list[int]) -> bool:
    for _ in range(200):  # 10 s
        if all(gone(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_metric_and_its_children_do_not_outlive_a_killed_worker(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(METRIC)
    worker = subprocess.Popen([sys.executable, "-c", MEASURE, "stay"], cwd=tmp_path, env=environment())
    pids = processes(tmp_path)
    assert not any(gone(pid) for pid in pids)
    os.kill(worker.pid, how)
    worker.wait()
    assert all_gone(pids)


def test_what_a_metric_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(METRIC)
    subprocess.run([sys.executable, "-c", MEASURE, "go"], cwd=tmp_path, env=environment(), check=True)
    assert all_gone(processes(tmp_path))
