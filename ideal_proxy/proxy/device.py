"""Which device a computation runs on: chosen here for everyone."""

from __future__ import annotations

import resource
import sys

import torch

from ideal_proxy.errors import UsageError


def best_device() -> str:
    """Return the kind of the best device here: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_device(name: str, worker: int = 0) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device; workers share out those of a kind."""
    if name == "auto":
        name = best_device()
    if name == "cuda":
        return torch.device("cuda", worker % max(1, torch.cuda.device_count()))
    return torch.device(name)


def peak_memory(device: torch.device | None = None) -> int:
    """Most bytes that this process, or its GPU, held so far."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def pick_device(wanted: str) -> torch.device:
    """Resolve the option `--device`, and refuse one that is not there with one sentence."""
    try:
        device = resolve_device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {wanted}: this machine or PyTorch has none; use cpu or auto") from error
    return device
