"""The page on Python names every public name, and its examples run and mean what they say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ROOT

import ideal_proxy

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_table_names_the_public_names() -> None:
    table = "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| "))
    named = set(re.findall(r"`(\w+)[`(]", table))
    assert named == set(ideal_proxy.__all__) - {"__version__"}


@pytest.fixture(scope="module")
def said(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the blocks in one space, in a folder with a run file whose search lacks its end alone."""
    folder = tmp_path_factory.mktemp("api")
    shutil.copy(whole / "mix.yaml", folder)
    shutil.copytree(whole / "run", folder / "runs" / "mix")
    for name in ("result.json", "mixture.json"):
        (folder / "runs" / "mix" / name).unlink()
    space: dict[str, Any] = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in BLOCKS:
            exec(compile(block, "api.md", "exec"), space)
    return space


def test_examples_of_a_search_and_its_mixture(said: dict[str, Any]) -> None:
    folder: Path = said["folder"]
    assert said["asked"].rows["formats"] == 700
    assert said["asked"].rows["strings"] == round(1.2 * said["asked"].base["strings"])
    assert (folder / "runs" / "mix" / "report.html").stat().st_size > 10_000
    assert said["written"].rows == said["mixture"].total_rows
    half = ideal_proxy.load_mixture(folder / "half.json")
    assert [d.rows for d in half.domains] == [d.rows // 2 for d in said["mixture"].domains]


def test_examples_of_a_table(said: dict[str, Any]) -> None:
    true = 1.2 + (1 + 1000 / 500) ** -0.5
    assert said["mean"] == pytest.approx(np.full((1, 2), true), abs=0.01)
    assert (said["lower"] < said["mean"]).all()
    assert (said["mean"] < said["upper"]).all()
    maths, code, chat = said["best"].volumes
    assert maths + code + chat == pytest.approx(3000)
    assert chat < 500, "it helps nobody"
    assert maths <= 1500 + 1e-6, "half of the rows at most"
    assert said["best"].objective < 1
    values = said["front"].values
    assert (np.diff(values[:, 0]) > 0).all()
    assert (np.diff(values[:, 1]) < 0).all()
