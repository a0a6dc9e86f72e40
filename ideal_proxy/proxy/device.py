"""Which device a computation runs on: chosen here for everyone."""

from __future__ import annotations

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


def pick_device(wanted: str) -> torch.device:
    """Resolve the option `--device`, and refuse one that is not there with one sentence."""
    try:
        device = resolve_device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {wanted}: this machine or PyTorch has none; use cpu or auto") from error
    return device
