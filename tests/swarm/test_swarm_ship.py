"""Folders in pieces, and the cache of a node: whole or not at all, swept when nobody holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ideal_proxy.errors import UserError
from ideal_proxy.store import MARKER
from ideal_proxy.swarm import ship


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
def test_a_folder_arrives_as_it_was(tmp_path, size):
    sent = {"a.bin": bytes(range(64)), "deep/er/b.txt": b"words", "empty": b"", "base/complete": b"", "c": b"x" * 14}
    for name, content in sent.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    (tmp_path / "from" / ".half.part").write_bytes(b"not yet")
    (tmp_path / "from" / MARKER).touch()
    pieces = list(ship.pack(tmp_path / "from", size))
    assert all(sum(len(data) for _, data in piece) <= size for piece in pieces)
    written = ship.unpack(iter(pieces), tmp_path / "to")
    assert tree(tmp_path / "to") == sent
    assert sorted(p.relative_to(tmp_path / "to").as_posix() for p in written) == sorted(sent)


def test_nothing_is_sent_of_nothing(tmp_path):
    assert list(ship.pack(tmp_path / "missing")) == []
    assert ship.unpack([], tmp_path / "to") == []


def test_a_file_cut_off_on_the_way_does_not_appear(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").write_bytes(b"1" * 10)
    (tmp_path / "from" / "b").write_bytes(b"2" * 10)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "b").write_bytes(b"before")

    def broken():
        pieces = list(ship.pack(tmp_path / "from", 6))
        yield from pieces[:-1]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        ship.unpack(broken(), tmp_path / "to")
    shown = {name: content for name, content in tree(tmp_path / "to").items() if not name.startswith(".")}
    assert shown == {"a": b"1" * 10, "b": b"before"}


def test_only_what_is_named_stays(tmp_path):
    for name in ("a", "model/weights", "kept/b", "kept/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ship.keep_only(tmp_path, ["a", "kept/b"])
    assert set(tree(tmp_path)) == {"a", "kept/b"}
    assert not (tmp_path / "model").exists()


def test_a_folder_that_nobody_holds_is_swept_after_a_while(tmp_path, monkeypatch):
    code = "import sys, pathlib\nfrom ideal_proxy.swarm.ship import hold\nheld = hold(pathlib.Path(sys.argv[1]))\n"
    wait = "print('held', flush=True)\nsys.stdin.read()\n"

    def lock(name):
        return tmp_path / f"{name}{ship.LOCK_END}"

    for name in ("dead", "fresh"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    with subprocess.Popen(
        [sys.executable, "-c", code + wait, str(tmp_path / "alive")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        for name in ("dead", "fresh", "alive", "mine"):
            (tmp_path / name).mkdir()
            if name not in {"fresh", "mine"}:
                os.utime(lock(name), (0, 0))
        with ship.hold(tmp_path / "mine"):
            assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"fresh", "alive", "mine"}
            assert not lock("dead").exists()
        other.stdin.close()
    ship.remove(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert not lock("mine").exists()


def test_nothing_of_other_programs_is_swept(tmp_path):
    """The cache may be set to a folder that others use: their locks, however named, and their folders stay."""
    for name in ("tool", "sly"):
        (tmp_path / name / "precious").mkdir(parents=True)
    theirs = {"tool.lock": b"", f"sly{ship.LOCK_END}": b"", f"other{ship.LOCK_END}": b"\xff\xfe", "x.lock": b"pid 7"}
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (0, 0))
    with ship.hold(tmp_path / "mine"):
        assert (tmp_path / "tool" / "precious").is_dir()
        assert (tmp_path / "sly" / "precious").is_dir()
        assert {name: (tmp_path / name).read_bytes() for name in theirs} == theirs
    ship.remove(tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["tool", "sly", *theirs])


def test_the_cache_is_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv(ship.CACHE, str(tmp_path / "cache"))
    assert ship.cache_root() == tmp_path / "cache"
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(ship.os, "getuid", lambda: -1)
    with pytest.raises(UserError, match="belongs to another user"):
        ship.cache_root()
    (tmp_path / "file").touch()
    monkeypatch.setenv(ship.CACHE, str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set IDEAL_PROXY_CACHE to another folder"):
        ship.cache_root()
