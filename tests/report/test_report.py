"""The report holds every number, runs nothing, fetches nothing, and escapes what comes from outside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import finished_run
import numpy as np
import pytest
from finished_run import AVAILABLE, BASE, CAPABILITIES, DOMAINS, PROPOSAL, TOKENS

import ideal_proxy
from ideal_proxy.cli import report as cli_report
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.finished import load_run
from ideal_proxy.report import few
from ideal_proxy.report import write as report
from ideal_proxy.report.curves import response_matrix
from ideal_proxy.report.numbers import collect, shown_domains
from ideal_proxy.report.page import DARK, escape, page
from ideal_proxy.report.whatif import what_if


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return report.write_report(run, out)


@pytest.fixture(scope="module")
def numbers(written):
    return json.loads(written.numbers.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def text(written):
    return written.page.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects tags, and text without them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.cells.append(data)


def test_the_page_is_whole_and_small(text, written):
    parsed = Page(text)
    assert not parsed.open
    assert written.page.stat().st_size < 2_000_000
    assert {"svg", "table", "h1", "section"} <= set(parsed.tags)
    pictures = (
        "verdict",
        "volumes",
        "shares",
        "losses",
        "responses",
        "mixing",
        "held-out",
        "movement",
        "pareto",
        "cost",
    )
    explorer = len(DOMAINS) + len(CAPABILITIES) + 1
    assert parsed.tags.count("svg") == len(pictures) + len(CAPABILITIES) + explorer


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(text):
    parsed = Page(text)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert [given for given, _ in scripts] == [" type='application/json' id='explorer-data'", ""]
    assert parsed.tags.count("script") == 2
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy\' content="([^"]*)"', text)
    assert len(policy) == 1
    assert f"script-src 'sha256-{digest}';" in policy[0]
    assert "unsafe-eval" not in policy[0]
    assert not re.search(r"\b(eval|Function|fetch|XMLHttpRequest|innerHTML|import)\b", scripts[1][1])
    assert not set("<>&") & set(scripts[0][1])
    assert not {"img", "link", "iframe", "object", "form", "i", "b"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href"):
            assert value is not None
            assert value.startswith("#")
    assert not re.findall(r"url\((?!#)", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in text


def test_ids_are_unique_and_links_lead_somewhere(text):
    parsed = Page(text)
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {v[1:] for n, v in parsed.attributes if n == "href"} <= set(ids)


def test_names_are_escaped_and_shown(text):
    shown = "".join(Page(text).cells)
    for name in (*DOMAINS, CAPABILITIES[1], finished_run.CONFIG["name"], "coding <i>and</i> more", "search <x>"):
        assert name in shown
        if "<" in name:
            assert escape(name) in text
            assert name not in text


def test_every_number_of_the_result_is_shown(text, run):
    cells = set(Page(text).cells)
    for entry in run.result["domains"]:
        for shown in (
            f"{entry['proposal_rows']:,}",
            f"{entry['tokens']:,}",
            f"{entry['share']:.1%}",
            f"{entry['repeat']:.2f}×",
        ):
            assert shown in cells
    for entry in run.result["capabilities"]:
        for key in ("predicted", "verified"):
            assert f"{entry[key]['value'] - 1:+.2%}" in cells
            assert f"[{entry[key]['lower'] - 1:+.2%}, {entry[key]['upper'] - 1:+.2%}]" in cells
        assert f"{entry['base_loss']:.4f}" in cells
    gain = run.result["verdict"]["gain"]
    assert f"±{gain['value'] - gain['lower']:.2%}" in cells
    assert f"{gain['value']:+.2%}" in cells


def test_numbers_shown_are_the_numbers_in_json(numbers, text):
    """A page made of other numbers shows other numbers: it takes them from nowhere else."""
    other = json.loads(json.dumps(numbers))
    other["domains"][0]["proposal_rows"] = 123_456
    other["cost"]["stages"][0]["tokens"] = 98_765
    other["cost"]["stages"][0]["flops"] = 7.7e13
    other["held_out"]["summary"][0]["error"] = 0.4321
    other["responses"]["rows_added"]["values"][0][0] = 0.8765
    other["verdict"]["noise_floor"] = 0.3333
    changed = page(other, [])
    for shown in ("123,456", "98,765", "7.7e+13", "43.21%", "+0.8765", "±33.33%"):
        assert shown in changed
        assert shown not in text


def test_json_holds_curves_matrices_and_runs(numbers, run):
    assert numbers["format"] == "ideal-proxy/report/1"
    matrix = response_matrix(run.model, BASE)
    assert np.array(numbers["responses"]["rows_added"]["values"]) == pytest.approx(matrix.values, rel=1e-5, abs=1e-9)
    assert numbers["responses"]["rows_added"]["within_noise"] == matrix.within_noise.tolist()
    assert [c["domain"] for c in numbers["curves"]] == DOMAINS
    for i, curve in enumerate(numbers["curves"]):
        assert min(curve["base"]["rows"]) <= BASE[i] <= max(curve["base"]["rows"]) * (1 + 1e-6)
        for name in CAPABILITIES:
            low, mean, high = (np.array(curve["base"][key][name]) for key in ("lower", "loss", "upper"))
            assert ((low < mean) & (mean < high)).all()
    assert len(numbers["held_out"]["runs"]) == (16 + 6) * 2
    assert numbers["pareto"]["first"] != numbers["pareto"]["second"]
    stages = {s["stage"]: s for s in numbers["cost"]["stages"]}
    assert list(stages) == ["warm start", "swarm", "check"]
    assert stages["swarm"] == {"stage": "swarm", "runs": 16, "tokens": 16_000, "flops": 4.8e9, "seconds": 160.0}
    assert numbers["cost"]["tokens"] == 23_000
    assert numbers["cost"]["flops"] == pytest.approx(23 * 3e8)
    assert numbers["cost"]["base_tokens"] == pytest.approx(BASE @ TOKENS)


def test_runs_without_a_count_of_products_show_none(run, numbers):
    older = replace(run, runs=run.runs.drop(columns="flops"))
    assert report.cost_stages(older)["flops"].isna().all()
    some = replace(run, runs=run.runs.assign(flops=run.runs["flops"].where(run.runs["run"] != "d3")))
    found = report.cost_stages(some).set_index("stage")["flops"]
    assert found.isna().tolist() == [False, True, False]
    cost = {"flops": None, "stages": [entry | {"flops": None} for entry in numbers["cost"]["stages"]]}
    shown = page(numbers | {"cost": numbers["cost"] | cost}, [])
    assert "23,000 tokens, – FLOPs" in shown


def test_health_names_what_is_wrong(numbers, text):
    findings = "\n".join(numbers["health"]["findings"])
    assert "share 12 equal rows" in findings
    assert "7 rows are longer than 512 tokens" in findings
    assert "domain coding: 2 rows cannot be read" in findings
    assert "under 200 reference rows for the verdict, which makes it noisy: " in findings
    assert " 199" in findings
    for line in numbers["health"]["findings"]:
        assert escape(line) in text


def test_figures_are_svg_and_png(written):
    names = {path.name for path in written.figures}
    for stem in ("verdict", "volumes", "losses", "responses", "mixing", "held-out", "movement", "cost", "pareto"):
        assert {f"{stem}.svg", f"{stem}.png"} <= names
    assert "response-02-script-alert-1.svg" in names
    for path in written.figures:
        if path.suffix == ".svg":
            ET.parse(path)
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_dark_mode_sets_every_colour(text):
    assert "prefers-color-scheme:dark" in text
    used = set(re.findall(r"var\(--([a-z]+)\)", text)) - {"font", "back", "link"}
    assert used <= set(DARK)


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_stand_out(theme):
    from ideal_proxy.report.plot_style import THEME

    colours = DARK if theme == "dark" else THEME
    assert contrast(colours["ink"], colours["paper"]) > 7
    assert contrast(colours["muted"], colours["paper"]) > 4.5
    for name in ("blue", "vermillion", "green"):
        assert contrast(colours[name], colours["paper"]) > 3


def test_a_base_that_is_kept_says_so(numbers):
    other = json.loads(json.dumps(numbers)) | {"adopted": False}
    other["verdict"]["answer"] = "not enough evidence"
    other["verdict"]["sentence"] = "not enough evidence: the gain is +0.10%"
    shown = page(other, [])
    assert "keeps the base" in shown
    assert "Not enough evidence: the gain is +0.10%." in shown
    assert "holds the proposal" not in shown


def test_who_pays_stands_at_the_top(numbers, text):
    assert numbers["pays"] == ""
    paying = page(numbers | {"pays": "the price: <b> (+3% loss)"}, [])
    assert "<strong>The price: &lt;b&gt; (+3% loss).</strong>" in paying.split("<section")[0]
    assert "The price" not in text


def test_many_panels_leave_the_page_small(run, monkeypatch):
    strength = np.abs(run.model.value_and_gradient(run.base)[1] * run.base)
    monkeypatch.setattr(few, "PANELS", 2 * len(CAPABILITIES))
    shown = shown_domains(run, few.few(run))
    for name, row in zip(CAPABILITIES, strength, strict=True):
        assert shown[name] == [DOMAINS[i] for i in sorted(np.argsort(-row)[:2])], "the strongest, in file order"


@pytest.mark.parametrize(
    ("text", "shown"), [("<a href='x'>", "&lt;a href=&#39;x&#39;&gt;"), ("a\x00b", "ab"), (3, "3")]
)
def test_escape(text, shown):
    assert escape(text) == shown


def test_a_search_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        report.write_report(tmp_path)


def test_a_run_of_another_version_is_refused_in_a_sentence(tmp_path):
    shutil.copytree(finished_run.folder(), tmp_path / "run")
    fit = json.loads((tmp_path / "run" / "fit.json").read_text())
    del fit["theta_"]
    (tmp_path / "run" / "fit.json").write_text(json.dumps(fit))
    with pytest.raises(UserError, match="another version"):
        load_run(tmp_path / "run")
    (tmp_path / "run" / "runs.parquet").write_bytes(b"no parquet")
    (tmp_path / "run" / "fit.json").write_text((finished_run.folder() / "fit.json").read_text())
    with pytest.raises(UserError, match="cannot be read"):
        load_run(tmp_path / "run")


def test_the_page_names_the_search_and_not_the_dry_run_before_it(numbers, text):
    assert numbers["repeat"]["command"] == "ideal-proxy search <x>"
    assert "the check could not see" in text
    assert "oise floor" not in text


def test_the_command_says_what_it_wrote(run, written, monkeypatch, capsys):
    monkeypatch.setattr("ideal_proxy.report.write_report", lambda *_, **options: written)
    cli_report.report(run.folder)
    out = capsys.readouterr().out
    assert str(written.page) in out
    assert "without network" in out
    cli_report.report(run.folder, as_json=True)
    assert json.loads(capsys.readouterr().out)["adopted"] is True


def test_a_run_opens_as_it_was_written(run):
    assert run.base == pytest.approx(BASE)
    assert run.proposal == pytest.approx(PROPOSAL)
    assert run.prepared.domains.available == pytest.approx(AVAILABLE)
    assert run.adopted
    assert len(run.fitted()) == 16
    assert run.volumes()[0] == pytest.approx(BASE)


def test_imitations_without_weight_are_passed_over_as_if_there_were_none(run, tmp_path):
    """A search on the target that imitates in vain has no run from elsewhere: its table does not tell origins."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    fit = json.loads((folder / "fit.json").read_text())
    vain = {"factor": 1.0, "spread": 0.1, "weight": 0.0, "learned": False, "runs": 28, "error": 0.0, "same_level": True}
    explained = [None] * len(CAPABILITIES)
    (folder / "fit.json").write_text(json.dumps(fit | {"fidelity_": {"imitations": vain | {"explained": explained}}}))
    opened = load_run(folder)
    assert "from" not in opened.runs
    assert len(opened.fitted()) == len(opened.at_size()) == 16
    assert opened.volumes() == pytest.approx(run.volumes())
    assert what_if(opened, {"coding": 1500}).gain == what_if(run, {"coding": 1500}).gain
    assert report.write_report(opened, tmp_path / "page").page.exists()


# ---------------------------------------------------------------- the public names


def test_import_is_light_and_every_name_is_there():
    code = (
        "import sys, ideal_proxy; light = not {'numpy', 'torch', 'matplotlib'} & set(sys.modules); "
        "import ideal_proxy.report.text; light &= not {'torch', 'scipy', 'sklearn'} & set(sys.modules); "  # for show
        "names = [getattr(ideal_proxy, n) for n in ideal_proxy.__all__]; "
        "import ideal_proxy.pipeline, ideal_proxy.optimizer; from ideal_proxy import search, optimize; "
        "print(light, callable(search), callable(optimize), 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert answer.stdout.split()[:3] == ["True", "True", "True"]


def test_public_names_are_few_and_documented():
    assert 10 <= len(ideal_proxy.__all__) <= 18
    assert set(ideal_proxy.__all__) == set(dir(ideal_proxy))
    for name in ideal_proxy.__all__:
        assert getattr(ideal_proxy, name).__doc__
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        ideal_proxy.nothing_of_the_kind  # noqa: B018


def test_of_a_large_search_what_changes_most_is_shown(run, monkeypatch, numbers):
    plain = [name for name, *_ in report.figures(run, None)]
    for name, value in {"LARGE": 1, "DOMAINS": 2, "CAPABILITIES": 1, "PANELS": 1, "HELD_OUT": 5}.items():
        monkeypatch.setattr(few, name, value)
    part = few.few(run)
    moved = np.abs(PROPOSAL - BASE) * TOKENS
    assert part.domains == sorted(np.argsort(-moved)[:2]), "those whose tokens change most"
    found, front = collect(run)
    assert front is None
    assert "so many domains" in found["pareto"]["note"]
    (capability,) = part.capabilities
    drawn = [name for name, *_ in report.figures(run, None)]
    assert [name for name in drawn if name.startswith("response-")] == [
        name for name in plain if name.startswith(f"response-{capability + 1:02d}") and "more" not in name
    ]
    assert len(found["held_out"]["runs"]) == 5
    assert found["held_out"]["summary"] == numbers["held_out"]["summary"], "of all"
    assert [curve["domain"] for curve in found["curves"]] == shown_domains(run, part)[CAPABILITIES[capability]]
    assert found["responses"] == numbers["responses"], "report.json has all"
    text = page(found, [])
    assert f"show the 2 of {len(DOMAINS)} domains" in text
    matrix = text[text.index("id='matrix'") : text.index("id='fit'")]
    assert matrix.count("±") == 1 + 2 * 2


def test_a_curve_of_very_many_runs_shows_some(run, monkeypatch):
    monkeypatch.setattr(few, "LEAST_MARKS", 4)
    monkeypatch.setattr(few, "MARKS", 10)
    part = few.few(run)
    assert (part.marks, part.text) == (4, "each curve shows 4 of 16 runs")
    assert few.evenly(16, 4).tolist() == [0, 5, 10, 15]


def test_figures_are_not_written_through_a_link_in_a_run_directory(run, tmp_path):
    (tmp_path / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="figures is a link"):
        report.write_report(replace(run, folder=tmp_path))
    assert not (tmp_path / "elsewhere").exists()
