"""The mixture card holds the numbers and no stranger's markup; two searches stand side by side; figures as PDF."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
from finished_run import CAPABILITIES, DOMAINS, PROPOSAL
from markdown_it import MarkdownIt

from ideal_proxy.cli import report as cli_report
from ideal_proxy.pipeline.finished import load_run
from ideal_proxy.report.card import comparison_tables, mixture_card
from ideal_proxy.report.plot_style import pdf_files
from ideal_proxy.report.plots import figure_volumes, plot_volumes


@pytest.fixture(scope="module")
def other(run, tmp_path_factory):
    """Another search: one domain renamed, one volume and one verdict different."""
    folder = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(run.folder, folder)
    for name in ("result.json", "prepared/facts.json"):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "result.json":
            values["domains"][0]["proposal_rows"] = 1234
            values["verdict"]["sentence"] = "no better than base: -0.1%"
            values["capabilities"][0]["name"] = "tools"
        else:
            values["domains"][2]["fingerprint"] = "9" * 64
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return load_run(folder)


def test_the_card_is_valid_markdown_with_every_number(run):
    card = mixture_card(run)
    tokens = MarkdownIt().enable("table").parse(card)
    assert not [token for token in tokens if token.type.startswith("html")]
    inline = [child for token in tokens if token.children for child in token.children]
    assert not [child for child in inline if child.type.startswith(("html", "image", "link"))]
    cells = ["".join(c.content for c in token.children) for token in tokens if token.type == "inline"]
    for name, rows in zip(DOMAINS, PROPOSAL, strict=True):
        assert name in cells
        assert f"{rows:,.0f}" in cells
    for entry in run.result["capabilities"]:
        assert entry["name"] in cells
        assert f"{entry['verified']['value'] - 1:+.2%}" in cells
    for row in card.splitlines():
        if row.startswith("| ") and DOMAINS[0] in row:
            assert row.replace("\\|", "").count("|") in (7, 10)
    assert "oding <i>and</i> more" in " ".join(cells)
    assert run.provenance["command"] in card


def test_two_searches_stand_side_by_side(run, other):
    text = comparison_tables(run, other)
    assert max(map(len, text.splitlines())) <= max(80, len(str(run.folder)), len(str(other.folder)))
    coding = next(line for line in text.splitlines() if line.startswith("coding") and "1,234" in line)
    assert coding.index("2,600") < coding.index("1,234")
    assert "no better than base" in text
    assert f"Other rows in A than in B: {DOMAINS[2]}." in text
    tools = next(line.split() for line in text.splitlines() if line.startswith("tools"))
    assert tools[1:3] == ["-", "-"]
    assert tools[3] != "-"
    assert "in common" not in text
    unlike = replace(other, result={**other.result, "capabilities": [
        {**entry, "name": f"other {n}"} for n, entry in enumerate(other.result["capabilities"])
    ]})  # fmt: skip
    told = " ".join(comparison_tables(run, unlike).split())
    assert "A and B have no capability in common: they answer different questions." in told


def test_the_commands(run, other, tmp_path, capsys):
    cli_report.report(run.folder, tmp_path, markdown=True)
    assert str(tmp_path / "report.md") in capsys.readouterr().out
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == mixture_card(run)
    assert not (tmp_path / "report.html").exists()
    cli_report.compare(run.folder, other.folder, as_json=True)
    values = json.loads(capsys.readouterr().out)
    assert values["b"]["domains"][0]["proposal_rows"] == 1234
    assert [c["name"] for c in values["a"]["capabilities"]] == CAPABILITIES


def test_figures_as_pdf_keep_their_text(run):
    files = pdf_files(plot_volumes(run).figure)
    assert files == pdf_files(plot_volumes(run).figure)
    for suffix, millimetres in (("pdf", 175), ("column.pdf", 85)):
        content = files[suffix]
        assert content.startswith(b"%PDF-")
        assert b"/Type /Font" in content
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", content)
        assert box is not None
        assert float(box[1]) == pytest.approx(millimetres / 25.4 * 72, abs=0.1)
    assert list(pdf_files(figure_volumes(run))) == ["pdf"], "three panels do not fit into a column"
