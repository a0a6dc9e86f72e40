"""Shells complete commands, options and targets; the script that does it is the program's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from builders import ROOT, environment

from ideal_proxy.cli.scaleup import TARGETS
from ideal_proxy.export.hand_over import TARGETS as KNOWN

MAIN = "from ideal_proxy.cli import main; main(prog_name='ideal-proxy')"


def answer(line: str, **more: str) -> list[str]:
    words = line.split(" ")
    asked = {"_IDEAL_PROXY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    env = environment(**asked, **more)
    done = subprocess.run([sys.executable, "-c", MAIN], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_commands_options_and_targets_are_completed() -> None:
    assert answer("ideal-proxy sc") == ["scale-up"]
    assert {"check", "search", "export"} <= set(answer("ideal-proxy "))
    assert answer("ideal-proxy export mixture.json --learn") == ["--learning-rate"]
    assert answer("ideal-proxy export mixture.json --to ms") == ["ms-swift"]
    assert set(TARGETS) == set(KNOWN)


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="there is no bash here")
def test_bash_takes_the_script_that_is_shown() -> None:
    env = environment(_IDEAL_PROXY_COMPLETE="source_bash")
    shown = subprocess.run([sys.executable, "-c", MAIN], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    script = f"{shown.stdout}\ncomplete -p ideal-proxy"
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("complete ")
