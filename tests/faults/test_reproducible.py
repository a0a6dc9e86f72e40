"""The versions that were tested are written down, each with its hash; SECURITY.md names tests that exist."""

from __future__ import annotations

import re

import pytest
from builders import ROOT, TESTS


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="the checkout's own files")
def test_every_version_of_the_two_jobs_has_a_hash() -> None:
    for kind in ("lowest", "newest"):
        lines = (ROOT / ".ci" / f"hashes-{kind}.txt").read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in pins)
        assert {"numpy", "torch", "transformers", "pydantic"} <= {line.partition("==")[0] for line in pins}
    known = {tuple(re.split("==| ", line)[:2]) for line in pins_of("lowest")}
    for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if version and not name.startswith("#"):
            found = {v.split("+")[0] for n, v in known if n == name.replace("_", "-")}
            assert not found or found == {version} or found == {f"{version}.0"}, name


def pins_of(kind: str) -> list[str]:
    lines = (ROOT / ".ci" / f"hashes-{kind}.txt").read_text().splitlines()
    return [line for line in lines if "==" in line and not line.startswith("#")]


def test_security_names_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    files = {path.name: path.read_text() for path in TESTS.rglob("test_*.py")}
    for line in text.splitlines():
        if line.startswith("| ") and "test_" in line:
            named = re.findall(r"test_\w+\.py", line)
            assert named
            assert all(name in files for name in named), line
            for part in re.findall(r"`(\w+)`", line.split("|")[2]):
                assert any(part in files[name] for name in named), part


def test_reliability_names_tests_that_exist() -> None:
    """In its tables `room/test_file.py::part` names a test by part of its name; `::part` alone is of that file."""
    found, text = 0, ""
    for word in re.findall(r"`((?:[\w/]+\.py)?(?:::\w+)?)`", (ROOT / "docs" / "reliability.md").read_text()):
        place, _, part = word.partition("::")
        if place.endswith(".py") and "test_" in place:
            text = next(path.read_text() for path in TESTS.rglob("test_*.py") if str(path).endswith(place))
        if part:
            found += 1
            assert re.search(rf"def test_\w*{part}", text), word
    assert found > 30
