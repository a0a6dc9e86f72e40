"""Run directories: atomic writes, markers, one lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time

import pytest

from ideal_proxy import store
from ideal_proxy.config import load_config
from ideal_proxy.errors import UserError
from ideal_proxy.provenance import provenance


def test_json_round_trip_and_refusal_of_nan(tmp_path):
    store.atomic_write_json(tmp_path / "deep" / "a.json", {"x": [1, 2.5, "ü"]})
    assert store.read_json(tmp_path / "deep" / "a.json") == {"x": [1, 2.5, "ü"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        store.atomic_write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_a_pipe_or_a_device_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(pipe := tmp_path / "mixture.json")
    for path in (pipe, "/dev/zero"):
        with pytest.raises(UserError, match="a pipe or a device, not a file"):
            store.read_json(path)
        with pytest.raises(UserError, match="a pipe or a device, not a file"):
            load_config(path)
    with pytest.raises(UserError, match="Is a directory"):
        store.read_json(tmp_path)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "kept.json"
    store.atomic_write_json(path, {"old": True})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*kept"):
        store.atomic_write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"old": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.json"]


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        store.read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="does not exist"):
        store.read_json(tmp_path / "y.json")


def test_marker(tmp_path):
    assert not store.is_complete(tmp_path)
    store.mark_complete(tmp_path)
    assert store.is_complete(tmp_path)


def test_lock_refuses_a_second_process_and_falls_with_the_first(tmp_path):
    holder = (
        "import sys, time\nfrom ideal_proxy.store import lock\n"
        "with lock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {process.pid}"), store.lock(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with store.lock(tmp_path):
        pass


def test_a_lock_of_another_machine_is_honoured_while_it_is_fresh(tmp_path):
    """Some mounts keep `flock` to one machine: there the holder's touches must do."""
    file = tmp_path / store.HOLDER
    file.write_text(store._signed("process 4711 on elsewhere"))
    refusal = r"was in use by process 4711 on elsewhere \d+ s ago.*in [5-9]\d s"
    with pytest.raises(UserError, match=refusal), store.lock(tmp_path):
        pass
    assert store.lock_holder(tmp_path) == "process 4711 on elsewhere"
    assert file.read_text().startswith("process 4711 on elsewhere\n")
    os.utime(file, (time.time() - 100, time.time() - 100))
    assert store.lock_holder(tmp_path) is None
    with store.lock(tmp_path):
        assert f"process {os.getpid()} on" in file.read_text()
    assert not file.exists()  # given back, so that nobody need wait


def test_a_crash_on_this_machine_makes_nobody_wait(tmp_path):
    (tmp_path / store.HOLDER).write_text(store._signed(f"process 4711 on {platform.node()}"))
    assert store.lock_holder(tmp_path) is None
    with store.lock(tmp_path):
        pass


def test_the_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BEAT_SECONDS", 0.02)
    file = tmp_path / store.HOLDER
    with store.lock(tmp_path):
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 5
        while file.stat().st_mtime < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    def refuse(handle, kind):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with store.lock(tmp_path):
            assert store.lock_holder(tmp_path) == f"process {os.getpid()} on {platform.node()}"
            with pytest.raises(UserError, match="may not carry locks"), store.lock(tmp_path):
                pass
        assert store.lock_holder(tmp_path) is None


def test_looking_does_not_disturb_and_two_looks_do_not_meet(tmp_path):
    """A look takes the lock for a moment: neither a search that begins nor another look may stumble over it."""
    (tmp_path / store.HOLDER).write_text(store._signed(f"process 4711 on {platform.node()}"))  # left by a crash
    look = (
        "import sys, time\nfrom ideal_proxy.store import lock_holder\nprint('on', flush=True)\n"
        "while True: lock_holder(sys.argv[1]); time.sleep(0.002)"
    )
    process = subprocess.Popen([sys.executable, "-c", look, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "on\n"
        assert [store.lock_holder(tmp_path) for _ in range(200)] == [None] * 200
        for _ in range(20):
            with store.lock(tmp_path):
                assert store.lock_holder(tmp_path) == f"process {os.getpid()} on {platform.node()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_provenance_names_versions_and_machine():
    value = provenance()
    assert {"torch", "numpy", "ideal-proxy", "python"} <= set(value["versions"])
    assert value["machine"]["cores"] >= 1


@pytest.mark.parametrize("name", ["/dev/zero", "../outside", "in/../../outside", "pipe", "null"])
def test_a_marker_names_regular_files_of_its_folder_alone(tmp_path, name):
    (tmp_path / "outside").write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / "pipe")
    (run / "null").symlink_to("/dev/zero")
    (run / store.MARKER).write_text(json.dumps({name: "1:" + store._checksum(tmp_path / "outside").partition(":")[2]}))
    assert store.damaged_file(run) == run / store.MARKER
    for content in ("[1]", "5"):
        (run / store.MARKER).write_text(content)
        assert store.damaged_file(run) == run / store.MARKER
