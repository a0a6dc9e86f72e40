"""What made a file: command, versions, revision and machine."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from ideal_proxy import __version__

PACKAGES = ("ideal-proxy", "torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn", "accelerate")


def provenance() -> dict[str, Any]:
    """Say what produced a result: versions, source revision, machine, command, time."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(Path(part).name if n == 0 else part for n, part in enumerate(sys.argv)),
        "versions": dict(_versions()),
        "git": _git_revision(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
    }


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Return the versions that this process runs with, by package."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    versions.setdefault("ideal-proxy", __version__)
    return tuple(versions.items())


@functools.cache
def _git_revision() -> str | None:
    """Return the checkout's revision, with `-dirty` where it has changes, or None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


@functools.cache
def _processor() -> str:
    """Return the processor's name as the machine tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
