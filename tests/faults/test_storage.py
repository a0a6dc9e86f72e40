"""A disk that takes no more: one sentence, and the same command goes on when there is room."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from builders import environment, run, write_rows, write_small_search
from finished_run import folder as finished_folder

from ideal_proxy import store
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.status import read_status
from ideal_proxy.pipeline.status_record import StatusRecord
from ideal_proxy.store import save_pretrained

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # no file may grow beyond: what a full disk says to each
from ideal_proxy.cli import main
main()
"""


@pytest.mark.parametrize(("most", "what", "really"), [(4_000, "tokenizer", True), (40_000, "prepared", False)])
def test_a_full_disk_is_one_sentence_at_every_kind_of_write(most: int, what: str, really: bool, tmp_path: Path) -> None:
    """Once in a process that starts as a user's does."""
    command = ["search", str(write_small_search(tmp_path)), "--dry-run", "--out", str(tmp_path / "out")]
    limited = [sys.executable, "-c", LIMITED, str(most), *command]
    if really:
        done = subprocess.run(limited, env=environment(), capture_output=True, text=True, check=False)
    else:
        done = forked.run(limited, env=environment(), timeout=600)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot write ")
    assert what in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert run(*command).returncode == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Exception("No space left on device (os error 28)"), True),
        (OSError(28, "full"), True),
        (ValueError("a bug"), False),
    ],
)
def test_what_libraries_raise_for_a_full_disk(error: Exception, told: bool, tmp_path: Path) -> None:
    class Kept:
        def save_pretrained(self, _: str) -> None:
            raise error

    with pytest.raises(UserError if told else ValueError, match="make room" if told else "a bug"):
        save_pretrained(Kept(), tmp_path)


def test_output_that_nobody_can_take(tmp_path: Path) -> None:
    command = f"{sys.executable} -m ideal_proxy.cli --help"
    for where, code in (("> /dev/full", 1), (">&-", 0)):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} {where}"], env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == code, where
        assert "Traceback" not in done.stderr
        assert ("No space left" in done.stderr) == bool(code)


ROWS = [{"instruction": f"say {n}", "output": f"{n}"} for n in range(40)]
NAMES = ("with space", "two\nlines", "数学 é", "x" * 250, "-rf", "a'b\"c", "%s{}$HOME")


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name(name: str, tmp_path: Path) -> None:
    """A folder of rows, a run file and a run directory under a name that is hard to write."""
    place = tmp_path / name
    place.mkdir()
    for part in ("a", "b"):
        write_rows(place / f"{part}.jsonl", [{**row, "output": f"{part}{n}"} for n, row in enumerate(ROWS)])
    domains = [{"name": part, "path": f"{part}.jsonl"} for part in "ab"]
    config = {"domains": domains, "capabilities": [{"name": "c", "path": "demo:facts?rows=20&split=reference"}],
              "proxy": {"size": "0.1M", "vocabulary": 300, "context": 48}}  # fmt: skip
    (place / "mix.yaml").write_text(json.dumps(config))
    done = run("search", str(place / "mix.yaml"), "--dry-run", "--out", str(place / "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run("status", str(place / "run"), cwd=tmp_path).returncode == 0
    assert run("preview", str(place / "a.jsonl"), "--rows", "1", cwd=tmp_path).returncode == 0


def test_a_name_of_255_bytes_is_a_sentence_where_a_part_file_would_be_longer(tmp_path: Path) -> None:
    for command in (
        ["search", str(write_small_search(tmp_path)), "--dry-run", "--out", str(tmp_path / ("y" * 255))],
        ["init", "data", "--out", "z" * 255],
        ["apply", str(finished_folder()), "--out", "w" * 255],
    ):
        done = run(*command, cwd=tmp_path)
        assert done.returncode in {0, 1, 2}
        assert not done.returncode or done.stderr.splitlines()[-1].startswith("error: "), command


def test_a_folder_that_was_moved_is_the_same_search(tmp_path: Path) -> None:
    mix = write_small_search(tmp_path)
    assert run("search", str(mix), "--dry-run", "--out", str(tmp_path / "a")).returncode == 0
    facts = (tmp_path / "a" / "prepared" / "facts.json").read_bytes()
    (tmp_path / "a").rename(tmp_path / "b")
    assert run("search", str(mix), "--dry-run", "--out", str(tmp_path / "b")).returncode == 0
    assert (tmp_path / "b" / "prepared" / "facts.json").read_bytes() == facts
    shutil.copytree(finished_folder(), tmp_path / "done")
    shown = run("what-if", "done", "--set", "coding=2100", cwd=tmp_path).stdout
    (tmp_path / "done").rename(tmp_path / "elsewhere")
    assert run("what-if", "elsewhere", "--set", "coding=2100", cwd=tmp_path).stdout == shown


def test_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the future, and a search whose clock ran backwards: no negative times, no lock for ever."""
    record = StatusRecord(tmp_path, [])
    ahead = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: ahead)
    with record, contextlib.suppress(KeyboardInterrupt):
        raise KeyboardInterrupt
    monkeypatch.undo()
    (tmp_path / "config.yaml").write_text("name: x\n")
    again = StatusRecord(tmp_path, [])
    assert again.spent_seconds >= 0
    with again:
        pass
    found = read_status(tmp_path)
    assert found["seconds_spent"] >= 0
    for path in tmp_path.iterdir():
        os.utime(path, (ahead, ahead))
    with store.lock(tmp_path):
        assert store.lock_holder(tmp_path)
    (tmp_path / store.HOLDER).write_text(store._signed("process 1 on elsewhere"))
    os.utime(tmp_path / store.HOLDER, (ahead, ahead))  # another machine's, touched tomorrow: it is not waited for
    with store.lock(tmp_path):
        pass


def test_a_lock_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system that grants every lock: the holder's touch keeps another machine out."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with store.lock(tmp_path):
        monkeypatch.setattr(platform, "node", lambda: "other")
        with pytest.raises(UserError, match="may not carry locks"), store.lock(tmp_path):
            pass
        assert "on other" not in (tmp_path / store.HOLDER).read_text()


ALL = """
import json, sys
from pathlib import Path
from builders import run
found = [run(*command, cwd=Path.cwd()) for command in json.loads(sys.argv[1])]
print(json.dumps([(done.returncode, done.stderr) for done in found]))
"""


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_permission_lost_midway_and_read_only_folders_are_sentences(tmp_path: Path) -> None:
    mix = write_small_search(tmp_path)
    assert run("search", str(mix), "--dry-run", "--out", str(tmp_path / "run")).returncode == 0
    shutil.copytree(finished_folder(), tmp_path / "done")
    shutil.rmtree(tmp_path / "run" / "prepared")
    folders = (tmp_path, tmp_path / "run", tmp_path / "done")
    obeying = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    for folder in folders:
        folder.chmod(0o555)
    commands = (
        ["search", str(mix), "--dry-run", "--out", "run"],
        ["report", "done"], ["apply", "done", "--out", "rows"], ["init", ".", "--out", "m.yaml"],
    )  # fmt: skip
    done = subprocess.run(
        [*obeying, sys.executable, "-c", ALL, json.dumps(commands)], env=environment(), cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for command, (code, said) in zip(commands, json.loads(done.stdout), strict=True):  # a traceback ends them all
        assert code in {1, 2}, command
        assert said.splitlines()[-1].startswith("error: "), command
    for folder in folders:
        folder.chmod(0o755)
