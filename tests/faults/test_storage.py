"""A disk that takes no more: one sentence, and the same command goes on when there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from builders import environment, run, write_small_search

from ideal_proxy.errors import UserError
from ideal_proxy.store import save_pretrained

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # no file may grow beyond: what a full disk says to each
from ideal_proxy.cli import main
main()
"""


@pytest.mark.parametrize(("most", "what"), [(4_000, "tokenizer"), (40_000, "prepared")])
def test_a_full_disk_is_one_sentence_at_every_kind_of_write(most: int, what: str, tmp_path: Path) -> None:
    command = ["search", str(write_small_search(tmp_path)), "--dry-run", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(most), *command], env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
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
