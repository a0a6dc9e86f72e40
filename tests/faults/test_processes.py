"""Nothing outlives the process that started it, and nothing of the current folder is imported."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from builders import environment, gone, run, search_command, write_small_search

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


def all_gone(pids: list[int], seconds: int = 10) -> bool:
    for _ in range(20 * seconds):
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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminal closed", "SIGHUP", "killed, as for want of memory"])
def test_a_search_that_is_stopped_is_told_and_goes_on(how: str, tmp_path: Path) -> None:
    """A closed terminal stops it as Ctrl-C does; what no program can answer leaves a folder that says so."""
    write_small_search(tmp_path)
    command = search_command(tmp_path, "run")
    lead, follow = pty.openpty()
    driver = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdin=follow, stdout=follow, stderr=follow, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(follow)
    seen = b""
    while not list(tmp_path.glob("run/workers/*.log")):
        assert driver.poll() is None, seen
        if select.select([lead], [], [], 0.05)[0]:
            seen += os.read(lead, 9_999)
    workers = [int(pid) for pid in children(driver.pid)]
    if how == "terminal closed":
        os.close(lead)
    else:
        driver.send_signal(signal.SIGHUP if how == "SIGHUP" else signal.SIGKILL)
        with contextlib.suppress(OSError):
            while chunk := os.read(lead, 9_999):
                seen += chunk
        os.close(lead)
    code = driver.wait(60)
    assert all_gone(workers, seconds=120)  # one that is still importing ends when it has imported
    told = run("status", "run", cwd=tmp_path).stdout
    assert "stopped" in told.splitlines()[0]
    if how == "SIGHUP":
        assert code == 130
        assert b"stopped; run the same command again" in seen
        assert b"Traceback" not in seen
    if how.startswith("killed"):
        assert "it was killed" in told
    assert "Go on: " in told
    again = run("search", "mix.yaml", "--dry-run", "--out", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_memory_that_is_full_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system grants no more of; a worker that the system kills is told as such (test_swarm)."""

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ideal_proxy.pipeline.status.read_status", full)
    monkeypatch.setattr("ideal_proxy.pipeline.read_status", full, raising=False)
    done = run("status", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: this machine's memory is full; free some, or give the search less\n"


def heard() -> None:
    """Let a program hear what a shell's background job and `nohup` shut out."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_sigterm_ends_any_command_with_one_sentence(tmp_path: Path) -> None:
    waiting = "import signal, sys, os\nfrom ideal_proxy.cli import main\nsent = getattr(signal, sys.argv.pop())\n"
    waiting += "def stop(*_): os.kill(os.getpid(), sent)\n"
    waiting += "import ideal_proxy.pipeline\nideal_proxy.pipeline.read_status = stop\nmain()"
    for sent in ("SIGTERM", "SIGHUP", "SIGINT"):
        done = subprocess.run(
            [sys.executable, "-c", waiting, "status", str(tmp_path), sent], env=environment(), capture_output=True,
            text=True, check=False, preexec_fn=heard,
        )  # fmt: skip
        assert done.returncode == 130, (sent, done.stderr)
        assert done.stderr == "stopping\nstopped; run the same command again to go on where it was\n"
