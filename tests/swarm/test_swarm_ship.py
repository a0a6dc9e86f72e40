"""Folders in pieces, and the cache of a node: complete or done again, swept when nobody holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ideal_proxy.errors import UserError
from ideal_proxy.store import MARKER, is_complete, is_whole
from ideal_proxy.swarm import ray_worker as ship
from ideal_proxy.swarm.ray_pool import keep_only


class Store:
    """Stands for Ray's object store; may lose the connection at one `get`."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.given = 0
        self.fail_at: int | None = None

    def put(self, data: bytes) -> int:
        self.kept.append(data)
        return len(self.kept) - 1

    def get(self, number: int) -> bytes:
        if number + 1 == self.fail_at:
            raise ConnectionError
        self.given += 1
        return self.kept[number]


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
    store = Store()
    files = ship.pack(tmp_path / "from", store.put, size)
    assert all(0 < len(data) <= size for data in store.kept)
    ship.unpack(files, tmp_path / "to", store.get)
    assert tree(tmp_path / "to") == sent


def test_nothing_is_sent_of_nothing(tmp_path):
    assert ship.pack(tmp_path / "missing", pytest.fail) == []
    ship.unpack([], tmp_path / "to", pytest.fail)
    assert not (tmp_path / "to").exists()


def test_a_node_takes_a_folder_in_once_and_again_where_it_was_cut_off(tmp_path):
    (tmp_path / "from").mkdir()
    for name in ("a", "b"):
        (tmp_path / "from" / name).write_bytes(name.encode() * 10)
    store = Store()
    files = ship.pack(tmp_path / "from", store.put, 6)
    store.fail_at = 3
    with pytest.raises(ConnectionError):
        ship.unpack_once(files, tmp_path / "to", store.get)
    assert not is_complete(tmp_path / "to")
    store.fail_at = None
    with ThreadPoolExecutor(4) as threads:
        did = list(threads.map(lambda _: ship.unpack_once(files, tmp_path / "to", store.get), range(4)))
    assert sorted(did) == [False, False, False, True]
    assert {**tree(tmp_path / "to"), MARKER: b""} == {**tree(tmp_path / "from"), MARKER: b""}
    assert is_whole(tmp_path / "to")
    assert store.given == 2 + 4  # before it was cut off, and then each piece once


def test_only_what_is_named_stays(tmp_path):
    for name in ("a", "model/weights", "kept/b", "kept/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    keep_only(tmp_path, ["a", "kept/b"])
    assert set(tree(tmp_path)) == {"a", "kept/b"}
    assert not (tmp_path / "model").exists()


def test_a_folder_that_nobody_holds_is_swept_after_a_while(tmp_path):
    code = (
        "import sys, pathlib\nfrom ideal_proxy.swarm.ray_worker import hold\nheld = hold(pathlib.Path(sys.argv[1]))\n"
    )
    wait = "print('held', flush=True)\nsys.stdin.read()\n"
    for name in ("dead", "fresh"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    with subprocess.Popen(
        [sys.executable, "-c", code + wait, str(tmp_path / "alive")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        for name in ("dead", "alive"):
            os.utime(tmp_path / name / ship.MARK, (0, 0))
        with ship.hold(tmp_path / "mine"):
            assert {path.name for path in tmp_path.iterdir()} == {"fresh", "alive", "mine"}
        other.stdin.close()


def test_nothing_of_other_programs_is_swept(tmp_path):
    """The cache may be set to a folder that others use: their folders stay, whatever they call their locks."""
    for name, content in {
        "tool": b"",
        "sly": b"pid 7",
        "other": b"\xff\xfe",
        "longer": ship.SIGN.encode() + b"x",
    }.items():
        (tmp_path / name / "precious").mkdir(parents=True)
        (tmp_path / name / ship.MARK).write_bytes(content)
        os.utime(tmp_path / name / ship.MARK, (0, 0))
    (tmp_path / "plain").mkdir()
    (tmp_path / ship.MARK).write_text(ship.SIGN)
    before = sorted(tmp_path.rglob("*"))
    with ship.hold(tmp_path / "mine"):
        assert sorted(path for path in tmp_path.rglob("*") if "mine" not in path.parts) == before


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
