"""The index of the benchmarks is complete and true, and every script still finds what it imports."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from builders import ROOT

FOLDER = ROOT / "benchmarks"
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(FOLDER.glob("*/*.py"))
RESULTS = sorted({*FOLDER.glob("*/*.md"), *FOLDER.glob("*/*.json")})
COUNTED = {"kill_resume.md"}  # its figure is a count of the table's lines


def sections() -> dict[str, str]:
    """Give the text of every folder's section."""
    parts = re.split(r"^## `(\w+)/`.*$", INDEX, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_folder_has_a_section_and_every_section_a_folder():
    assert set(sections()) == {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_is_listed_and_finds_what_it_imports(script: Path):
    assert f"`{script.name}`" in sections()[script.parent.name]
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ideal_proxy"):
            module = importlib.import_module(node.module)
            names = [name.name for name in node.names if not hasattr(module, name.name)]
            missing = [name for name in names if importlib.util.find_spec(f"{node.module}.{name}") is None]
            assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.name)
def test_every_result_bears_the_name_of_a_script_or_of_settings_and_is_listed(result: Path):
    stem = result.name.partition(".environment")[0].removesuffix(result.suffix)
    owners = [path.stem for path in (*result.parent.glob("*.py"), *result.parent.glob("*.yaml"))]
    assert any(stem == owner or stem.startswith(f"{owner}_") for owner in owners)
    page = result.with_name(f"{stem}.md")
    listed = f"({result.parent.name}/{page.name if page.exists() else result.name})"
    assert listed in sections()[result.parent.name]


@pytest.mark.parametrize("name", sorted(sections()))
def test_every_figure_stands_in_its_result(name: str):
    rows = table(sections()[name])
    assert rows
    for claim, scripts, figure, results in rows:
        for script in re.findall(r"`([^`]+)`", scripts):
            assert (FOLDER / name / script).is_file(), f"{claim}: {script}"
        pages = [FOLDER / link for link in re.findall(r"\]\(([^)]+)\)", results)]
        assert pages, claim
        text = "".join(page.read_text(encoding="utf-8") for page in pages)
        numbers = re.findall(r"\d[\d.,]*\d|\d", figure)
        assert numbers, claim
        absent = [number for number in numbers if number not in text]
        assert not absent or pages[0].name in COUNTED, f"{claim}: {absent} not in {pages[0].name}"
