"""Every notebook runs from top to bottom, on settings too small to mean anything; the two dearest are slow tests."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLOTS = {"01": 3, "02": 5, "03": 2, "04": 1, "05": 1, "06": 1, "07": 0}


def code_of(path: Path) -> list[str]:
    """Give the code cells without what only IPython understands."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return ["\n".join(line for line in text.splitlines() if not line.startswith(("%", "!"))) for text in sources]


def execute(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Run the cells in one namespace; give it and the value each cell ends with."""
    space: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, text in enumerate(code_of(path)):
        tree = ast.parse(text)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path.name}[{number}]", "exec"), space)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"{path.name}[{number}]", "eval"), space)
            shown.append(value)
    return space, shown


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def smoke(monkeypatch, runs):
    """Run as a test: searches that decide nothing, the demo's over four of its domains and capabilities."""
    import ideal_proxy.data

    demo, kept = ideal_proxy.data.demo_config(), ("arithmetic", "strings", "formats", "facts")
    few = {
        part: tuple(entry for entry in getattr(demo, part) if entry.name in kept)
        for part in ("domains", "capabilities")
    }
    monkeypatch.setattr(ideal_proxy.data, "demo_config", lambda: demo.model_copy(update={**few, "gradients": "none"}))
    monkeypatch.setenv("IDEAL_PROXY_SMOKE", "1")
    monkeypatch.setenv("IDEAL_PROXY_RUNS", str(runs))
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setenv("MPLBACKEND", "agg")
    mpl.use("agg")
    return runs


def figures_in(values: list[Any]) -> int:
    from matplotlib.figure import Figure

    found = [value for value in values if isinstance(value, Figure)]
    assert all(figure.axes for figure in found)
    return len(found)


def test_a_first_search(smoke, capsys):
    space, shown = execute(ROOT / "notebooks" / "01_first_search.ipynb")
    out = capsys.readouterr().out
    assert figures_in(shown) == 3
    assert any(word in out for word in ("improves", "no better than base", "not enough evidence"))
    run, applied = space["run"], space["applied"]
    assert applied.rows == sum(d.rows for d in run.mixture.domains)
    assert space["report"].page.exists()
    assert space["answer"].rows["facts"] == 480


def test_response_curves(smoke):
    space, shown = execute(ROOT / "notebooks" / "02_response_curves.ipynb")
    assert figures_in(shown) == 5
    examples = space["examples"]
    assert len(examples) == 2 * len(space["run"].domains)
    more, less = (examples.loc[("facts", change), "facts"] for change in ("+50%", "-50%"))
    assert more < less, "more facts, lower facts loss"


@pytest.mark.slow
def test_gradients(smoke):
    space, shown = execute(ROOT / "notebooks" / "04_gradients.ipynb")
    assert figures_in(shown) == 1
    truth, unrolled = space["truth"].M, space["found"]["unrolled"].M
    for matrix in (truth, unrolled):
        assert (np.diag(matrix) < 0).all(), "a domain lowers its own capability's loss"
    comparison = space["comparison"]
    assert comparison.loc[("unrolled", "own domain"), "relative error"] < 0.6
    assert comparison["cost in runs"].groupby("method").first()["implicit"] < 3


def test_hand_over(smoke, capsys):
    space, shown = execute(ROOT / "notebooks" / "05_hand_over.ipynb")
    assert figures_in(shown) == 1
    back, volumes = space["back"], space["volumes"]
    assert back["drawn"].tolist() == volumes["rows"].tolist()
    facts = volumes.loc["facts"]
    assert facts["rows"] > facts["available"]
    assert back.loc["facts", "2x"] == facts["rows"] - facts["available"]
    assert "will draw" in capsys.readouterr().out


@pytest.mark.slow
def test_your_trainer(smoke):
    space, _ = execute(ROOT / "notebooks" / "07_your_trainer.ipynb")
    table, untrained = space["table"], space["runs"]["trl"].result
    assert list(table.columns) == ["built-in", "trl"]
    # A trainer that changes nothing gains nothing, and nothing is what the check finds.
    assert untrained["verdict"]["gain"]["value"] == 0
    moved = {name: np.ptp(run.losses(), axis=0) for name, run in space["runs"].items()}
    assert moved["trl"].max() == 0 < moved["built-in"].min()


def test_your_own_tables(smoke):
    reason = ""
    try:
        space, shown = execute(ROOT / "notebooks" / "03_your_own_tables.ipynb")
    except SystemExit as left:
        reason = str(left)
    if reason.startswith("skipped: "):
        pytest.skip(reason)
    assert not reason
    assert figures_in(shown) == 2
    comparison = space["comparison"]
    assert comparison.loc["mean", ("law", "1M")] > 0.95
    assert comparison.loc["mean", ("law", "60M")] > 0.95
    assert 0.8 < space["inside"].mean() < 1
    assert space["optimum"].predicted_gain > 0


def test_what_if_from_a_csv(smoke, capsys):
    space, shown = execute(ROOT / "notebooks" / "06_what_if_from_a_csv.ipynb")
    assert figures_in(shown) == 1
    asked, best = shown[2], shown[-1]
    assert asked.loc["coding_loss", "to"] < 0, "three times the code lowers the loss on code for sure"
    assert best.loc["mean gain", "from"] > 0
    volumes = space["best"].volumes
    assert volumes.sum() == pytest.approx(space["base"].sum(), rel=1e-3)
    assert space["what_if"](coding=20_000) is not None
    assert "coding was run from" in capsys.readouterr().out


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem[:2] in PLOTS], ids=lambda path: path.stem)
def test_stored_outputs_belong_to_the_source(path):
    """`python notebooks/run.py` stores them."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = "\0".join("".join(cell["source"]) for cell in code)
    assert notebook["metadata"]["ran"] == hashlib.sha256(text.encode()).hexdigest()[:16], "run notebooks/run.py"
    outputs = [output for cell in code for output in cell["outputs"]]
    kinds = [set(output.get("data", ())) for output in outputs]
    assert sum("image/png" in kind for kind in kinds) == PLOTS[path.stem[:2]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_whole(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))
    for text in code_of(path):
        ast.parse(text)
