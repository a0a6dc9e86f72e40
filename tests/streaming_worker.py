"""Reads an exported `mixture_streams.py` with MosaicML Streaming itself and prints what it draws, a row a line.

Run as `python streaming_worker.py FOLDER`. Streaming imports compressors, clouds and image libraries that no JSON shard
needs; those that are not installed are stood in for, so that its own reader and sampler can be run without them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

UNUSED = ("brotli", "snappy", "zstd", "torchvision", "boto3", "botocore", "oci", "paramiko", "azure", "google")


class StandIn(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {"__init__": lambda *_, **__: None})


class Registry:
    """What Streaming asks of `catalogue`: to keep things by name."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.kept: dict[str, Any] = {}

    def register(self, name: str, *, func: Any = None) -> Any:
        self.kept[name] = func
        return func

    def get(self, name: str) -> Any:
        return self.kept[name]

    def get_all(self) -> dict[str, Any]:
        return self.kept


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] in UNUSED else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def main(folder: Path) -> None:
    sys.meta_path.append(Missing())  # asked last: what is installed is used
    if importlib.util.find_spec("catalogue") is None:
        catalogue = types.ModuleType("catalogue")
        catalogue.__dict__.update(Registry=Registry, RegistryError=KeyError, check_exists=lambda *_: False)
        sys.modules["catalogue"] = catalogue
    import streaming

    streaming.base.util.clean_stale_shared_memory()
    spec = importlib.util.spec_from_file_location("mixture_streams", folder / "mixture_streams.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dataset = module.dataset(batch_size=1)
    sys.stdout.write(f"{dataset.epoch_size}\n")
    for sample in dataset:
        sys.stdout.write(json.dumps(json.loads(sample["messages"])) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
