"""The checkout's `cli.py`: where torch comes from, what it says, and that it needs the standard library alone."""

from __future__ import annotations

import ast
import importlib.util
import sys
import tomllib
import urllib.error
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("checkout_cli", ROOT / "cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "has", lambda modules: False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.Path, "exists", lambda path: False)
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    return module


def answer(reachable: bool):
    class Page:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    def urlopen(url, timeout):
        assert timeout <= 10
        if reachable:
            return Page()
        raise urllib.error.URLError("no route")

    return urlopen


def test_a_torch_that_is_there_is_kept(script, monkeypatch):
    monkeypatch.setattr(script, "has", lambda modules: modules == ["torch"])
    assert script.torch_requirement()[0] is None


def test_an_nvidia_driver_takes_the_default_index(script, monkeypatch):
    monkeypatch.setattr(script.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None)
    arguments, why = script.torch_requirement()
    assert arguments == ["torch>=2.11"]
    assert "CUDA" in why


def test_without_a_gpu_the_cpu_index_is_tried_then_the_pin(script, monkeypatch):
    monkeypatch.setattr(script.urllib.request, "urlopen", answer(True))
    assert script.torch_requirement()[0] == ["torch>=2.11", "--index-url", "https://download.pytorch.org/whl/cpu"]
    monkeypatch.setattr(script.urllib.request, "urlopen", answer(False))
    arguments, why = script.torch_requirement()
    assert arguments == ["torch==2.13.0"]
    assert "out of reach" in why


def test_the_pin_lives_in_the_bootstrap_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    assert not [entry for entry in needed if entry.startswith("torch") and "==" in entry]


def test_it_imports_the_standard_library_alone():
    tree = ast.parse((ROOT / "cli.py").read_text())
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names <= sys.stdlib_module_names


def test_what_it_looks_for_is_what_the_project_needs():
    spec = importlib.util.spec_from_file_location("checkout_cli_2", ROOT / "cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = {entry.split(">")[0].lower() for entry in project["dependencies"]}
    imported = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
    assert {imported.get(name, name) for name in module.NEEDED["run"]} <= distributions


def test_a_failed_install_is_one_sentence_and_keeps_what_was_done(script, monkeypatch):
    class Failed:
        returncode = 1

    monkeypatch.setattr(script.subprocess, "run", lambda *a, **k: Failed())
    with pytest.raises(SystemExit) as caught:
        script.pip("python", "torch==2.13.0")
    assert "could not install torch==2.13.0" in str(caught.value)
    assert "run the same command again" in str(caught.value)
