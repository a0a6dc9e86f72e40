"""A hub that is a folder: what `HfApi` is asked for is done there."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError


class Hub:
    def __init__(self, folder: Path) -> None:
        self.folder, self.private = folder, {}  # type: ignore[var-annotated]

    def __call__(self) -> Hub:
        return self

    def create_repo(self, name: str, *, repo_type: str, private: bool, exist_ok: bool) -> str:
        if "/" not in name:
            raise HFValidationError(f"{name} has no owner")
        assert exist_ok
        self.private.setdefault((repo_type, name), private)  # an old one keeps who may see it
        return f"hub://{repo_type}/{name}"

    def repo_info(self, name: str, *, repo_type: str) -> Any:
        return SimpleNamespace(private=self.private[repo_type, name])

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: Path, allow_patterns: list[str],
        ignore_patterns: list[str], commit_message: str,
    ) -> None:  # fmt: skip
        for path in sorted(Path(folder_path).rglob("*")):
            name = path.relative_to(folder_path).as_posix()
            wanted = any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            if path.is_file() and wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns):
                place = self.folder / repo_type / repo_id / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)

    def upload_file(
        self, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, repo_type: str, commit_message: str
    ) -> None:
        (self.folder / repo_type / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    def dataset_info(self, name: str, *, timeout: float) -> Any:
        return SimpleNamespace(card_data={"license": {"their/rows": "cc-by-4.0"}.get(name)})


def make_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Hub:
    hub = Hub(folder)
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    return hub
