"""The explorer computes what Python computes, chooses among real optima, and does what its sliders say."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import finished_run
import numpy as np
import pytest
import yaml
from finished_run import BASE, DOMAINS, PROPOSAL, TOKENS

from ideal_proxy.domains import Domains
from ideal_proxy.mixture.file import load_mixture
from ideal_proxy.optimizer.constraints import Constraints, Problem
from ideal_proxy.optimizer.objective import Objective
from ideal_proxy.optimizer.optimum import optimize
from ideal_proxy.report import embedded
from ideal_proxy.report.choices import optima
from ideal_proxy.report.embedded import comparison
from ideal_proxy.report.explorer import embed, explorer, script
from ideal_proxy.report.numbers import collect
from ideal_proxy.report.page import page
from ideal_proxy.report.write import write_report
from ideal_proxy.response.bends import Bends
from ideal_proxy.response.forms import FORMS
from ideal_proxy.response.model import ResponseModel
from ideal_proxy.response.prediction import compare
from ideal_proxy.response.relative import Yardstick

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to run the page's script")


def run_page(text: str, folder) -> str:
    """Open a page in Chromium and give its document after the scripts ran."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=5000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


def answer(text: str, driver: str, folder):
    """Run a driver after the page's own script and give what it computed."""
    text = re.sub(r"<meta http-equiv=.*?>", "", text)
    driver = (
        "<pre id='answer'></pre><script>try{document.getElementById('answer').textContent="
        f"JSON.stringify((()=>{{{driver}}})());}}catch(e){{document.getElementById('answer').textContent="
        "JSON.stringify(String(e.stack))}</script>"
    )
    found = re.search(r'<pre id="answer">(.*?)</pre>', run_page(text + driver, folder), re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def fits():
    """Fits that together use every form, kernel and kind, and mixtures to ask them for."""
    rng = np.random.default_rng(5)
    base, available = np.array([2000.0, 1000.0, 300.0, 500.0]), np.array([1500.0, 1000.0, 3000.0, 400.0])
    design = base * np.exp(rng.uniform(-1.2, 1.2, (26, 4)))
    x = design / 1000.0
    losses = 1.0 + np.stack([
        2.0 / (1.0 + np.sqrt(x[:, 0]) + 0.2 * x[:, 1]),
        np.exp(-0.8 * x[:, 1] - 0.3 * x[:, 2]),
        0.3 * x[:, 0] * x[:, 3] + 1.0 / (1.0 + x[:, 2]),
    ], axis=1)  # fmt: skip
    losses += 0.01 * rng.standard_normal(losses.shape)
    losses[3, 1] = np.nan  # one capability saw other runs
    options = {"available": available, "base": base, "n_starts": 1, "n_draws": 24}
    blend = ResponseModel(**options).fit(design, losses)
    harmed = ResponseModel(process="never", harm="always", **options).fit(design, losses, retired=1)
    scores = ResponseModel(kind=["loss", "score", "cost"], **options).fit(design, losses)
    bent = ResponseModel.from_json(harmed.to_json())
    bent.bends_ = Bends(0.1 * rng.standard_normal((24, 3, 4)), rng.standard_normal(4))
    stick = Yardstick(("loss", "score", "cost"), np.array([np.nan, 0.2, 0.5]))
    found = {form: (blend.alone(form), {}) for form in FORMS}
    found |= {
        "blend": (blend, {"kind": "weighted", "weights": np.array([1.0, 0.0, 3.0])}),
        "worst": (blend, {"kind": "worst"}),
        "harm, a domain retired": (harmed, {}),
        "other kinds' errors": (bent, {}),
        "scores": (scores, {"yardstick": stick}),
    }
    mixtures = np.vstack([base, base * np.exp(rng.uniform(-1.5, 1.5, (9, 4)))])
    return base, found, np.rint(mixtures)


@needs_chromium
def test_the_page_predicts_what_python_predicts(fits, tmp_path):
    base, found, mixtures = fits
    kernels = {
        (p.kernel.shape, p.floor is None)
        for m, _ in found.values()
        for by in m.processes_.values()
        for p in by.values()
    }
    assert {shape for shape, _ in kernels} == {"matern", "product", "linear"}
    assert {plain for _, plain in kernels} == {True, False}
    data = []
    for model, options in found.values():
        D = model.n_features_in_
        data.append([comparison(model, base[:D], pairs=3, **options), mixtures[:, :D].tolist()])
    text = f"<!doctype html><meta charset='utf-8'><script type='application/json' id='data'>{embed(data)}</script>"
    got = answer(
        f"{text}<script>{script()[0]}</script>",
        "return JSON.parse(document.getElementById('data').textContent).map(([packed, mixtures]) => {"
        "const opened = openData(packed); return mixtures.map(v => compare(opened, v)); });",
        tmp_path,
    )
    for (name, (model, options)), answers in zip(found.items(), got, strict=True):
        D, widths = model.n_features_in_, []
        for v, here in zip(mixtures[:, :D], answers, strict=True):
            expected = compare(model, v, base[:D], pairs=3, **options)
            assert here["losses"] == pytest.approx(model.value_and_gradient(v)[0], rel=1e-9, abs=1e-9), name
            for bound, (value, lower, upper) in zip(
                (*expected.ratios, expected.gain), (*here["ratios"], here["gain"]), strict=True
            ):
                assert value == pytest.approx(bound.value, abs=1e-6), name
                assert (lower, upper) == pytest.approx((bound.lower, bound.upper), abs=1e-3), name
                assert upper - lower == pytest.approx(bound.upper - bound.lower, rel=1e-2, abs=1e-9), name
                widths.append(upper - lower)
        assert max(widths) > 0.01
        assert widths[: len(expected.ratios) + 1] == [0.0] * (len(expected.ratios) + 1)  # base against itself


def test_draws_are_thinned_where_the_page_would_grow(fits, monkeypatch):
    base, found, _ = fits
    model = found["blend"][0]
    whole = comparison(model, base, pairs=3)["model"]
    assert whole["draws"] == whole["all_draws"] == 24
    weight = len(json.dumps([whole["theta_draws"], [p["draws"] for p in whole["processes"]]]))
    monkeypatch.setattr(embedded, "DRAW_BYTES", 3_000)
    thinned = comparison(model, base, pairs=3)["model"]
    assert 1 < thinned["draws"] < 24
    assert len(json.dumps([thinned["theta_draws"], [p["draws"] for p in thinned["processes"]]])) < weight


def test_a_fit_too_large_for_a_page_has_no_explorer(run, monkeypatch):
    monkeypatch.setattr(embedded, "DRAW_BYTES", 100)
    assert explorer(run) is None


@pytest.fixture(scope="module")
def data(run):
    return explorer(run)


def test_many_mixtures_at_once_are_the_same_as_one_by_one(fits):
    _, found, mixtures = fits
    for model, _ in found.values():
        v = mixtures[:, : model.n_features_in_]
        values, by = model.values_and_gradients(v)
        for k, row in enumerate(v):
            one, gradient = model.value_and_gradient(row)
            assert values[k] == pytest.approx(one, rel=1e-9)
            assert by[k] == pytest.approx(gradient, rel=1e-5, abs=1e-9)


def test_optima_are_optima_and_within_the_limits(fits):
    base, found, mixtures = fits
    model = found["blend"][0]
    domains = Domains(
        names=("a", "b", "c", "d"), base=base, available=np.array([1500.0, 1000.0, 3000.0, 400.0]),
        tokens_per_row=np.array([10.0, 20.0, 5.0, 30.0]),
    )  # fmt: skip
    constraints = Constraints.from_options(
        {"budget": "keep", "trust_region": 1.0, "groups": ["a + b <= 60 %"]},
        Problem(domains=domains, capabilities=("x", "y", "z")),
    )
    stick = Yardstick.of_losses(3)
    rows = optima(model, constraints, stick, mixtures)
    assert len(rows) >= 500
    for atom in constraints.atoms():
        slack = 1.001 * np.abs(atom.weights).max() + 1e-3 * np.abs(atom.weights) @ base
        assert (rows @ atom.weights >= atom.lower - slack).all(), atom.label
        assert (rows @ atom.weights <= atom.upper + slack).all(), atom.label
    at_base = model.value_and_gradient(base)[0]
    ratio = stick.relative(model.values_and_gradients(rows)[0], at_base)
    weights = {"x": 1 / 3, "y": 1 / 3, "z": 1 / 3}
    best = optimize(model, Objective(kind="weighted", weights=weights), constraints, n_starts=4)
    assert ratio.mean(axis=1).min() <= best.objective + 5e-4
    limited = replace(constraints, limits=replace(constraints.limits, must_not_drop={"z": 0.0}), confidence=0.5)
    best = optimize(model, Objective(kind="weighted", weights=weights), limited, n_starts=4)
    assert ratio[ratio[:, 2] <= 1.0].mean(axis=1).min() <= best.objective + 5e-3


@pytest.fixture(scope="module")
def text(run, data, tmp_path_factory):
    return write_report(run, tmp_path_factory.mktemp("explorer")).page.read_text(encoding="utf-8")


@needs_chromium
def test_the_script_runs_under_the_pages_own_policy(text, tmp_path):
    hidden = re.compile(r'<section id="explorer" hidden=""')
    assert not hidden.search(run_page(text, tmp_path))
    (tmp_path / "other").mkdir()
    assert hidden.search(run_page(text.replace("function start(", "function  start("), tmp_path / "other"))


@needs_chromium
def test_sliders_do_what_they_say(run, text, tmp_path):
    driver = """
      const at = id => document.getElementById("x-" + id), D = 3, J = 2, log = {};
      const set = (id, value) => { at(id).value = value;
        for (const kind of ["input", "change"]) at(id).dispatchEvent(new Event(kind)); };
      const rows = () => [...Array(D).keys()].map(i => Number(at("rows-" + i).value));
      const said = () => [...Array(J).keys()].map(j => at("change-" + j).textContent);
      log.first = rows();
      at("base").click(); log.base = rows(); log.at_base = said();
      at("keep").checked = false; set("rows-0", 2500); log.free = rows(); log.status = at("status").textContent;
      at("base").click(); at("keep").checked = true; set("volume-0", 700); log.kept = rows();
      log.caution = at("caution").hidden;
      set("limit-1", 0); log.wish = rows(); log.found = at("found").textContent;
      log.missed = at("limited-1").textContent;
      at("unlimited").click(); log.best = rows(); log.best_said = at("found").textContent;
      at("careful").click(); log.careful = said();
      at("front").dispatchEvent(new KeyboardEvent("keydown", {key: "End"})); log.end = rows();
      at("front").dispatchEvent(new KeyboardEvent("keydown", {key: "Home"})); log.home = rows();
      log.step = at("status").textContent;
      at("front").querySelector("circle.f-other, circle.f-front").dispatchEvent(new Event("click")); log.click = rows();
      at("proposal").click();
      log.copied = ["command", "yaml", "mixture"].map(id => { at(id).click(); return at("copied").value; });
      log.labels = [...document.querySelectorAll("#explorer input, #explorer textarea, #explorer select")]
        .filter(e => !(e.labels.length || e.getAttribute("aria-label"))).length;
      log.value_text = at("volume-1").getAttribute("aria-valuetext");
      return log;"""
    log = answer(text, driver, tmp_path)
    assert isinstance(log, dict), log
    assert log["first"] == PROPOSAL.tolist()
    assert log["base"] == BASE.tolist()
    assert all(entry.startswith("±0.0 % [±0.0 %, ±0.0 %]") for entry in log["at_base"])
    assert log["free"] == [2500, *BASE[1:].tolist()]
    assert "2,500 rows" in log["status"]
    assert log["kept"][0] > BASE[0]
    assert log["kept"] @ TOKENS == pytest.approx(BASE @ TOKENS, abs=TOKENS.sum())
    assert log["kept"][1] < BASE[1]

    def ask(rows):
        return run.model.value_and_gradient(np.array(rows, dtype=float))[0] / run.model.value_and_gradient(BASE)[0]

    assert log["missed"].endswith(": missed")
    assert "misses them least" in log["found"]
    assert ask(log["wish"])[1] < ask(log["best"])[1]
    assert ask(log["best"]).mean() <= min(ask(log[name]).mean() for name in ("base", "first", "wish", "click")) + 1e-9
    assert "best objective" in log["best_said"]
    assert ask(log["home"]).mean() <= ask(log["end"]).mean()
    assert "Point 1 of " in log["step"]
    command, yaml_text, mixture = log["copied"]
    assert f"--set 'coding={PROPOSAL[0]:.0f}'" in command
    assert [d["base"] for d in yaml.safe_load(yaml_text)["domains"]] == PROPOSAL.tolist()
    path = tmp_path / "mixture.json"
    path.write_text(mixture, encoding="utf-8")
    made = load_mixture(path)
    assert [d.rows for d in made.domains] == PROPOSAL.tolist()
    assert [d.name for d in made.domains] == DOMAINS
    assert made.verdict is None
    assert log["labels"] == 0
    assert "rows, repeat" in log["value_text"]


def test_without_an_explorer_the_page_is_whole(run, text):
    plain = page(collect(run)[0], [])
    assert "explorer-data" not in plain
    assert "<script>" not in plain
    assert finished_run.CONFIG["name"].split()[0] in plain


@pytest.mark.parametrize("count", [3, 5])
def test_few_domains_have_500_mixtures_near_the_front_to_choose_among(count):
    """Optima of three domains are few and the same; what joins them is nearer the front than mixtures are by chance."""
    rng = np.random.default_rng(count)
    base = np.linspace(2000.0, 500.0, count)
    design = base * np.exp(rng.uniform(-1.2, 1.2, (20, count)))
    likes = np.eye(2, count) + 0.1
    losses = 1.0 + 2.0 / (1.0 + np.sqrt(design / 1000.0) @ likes.T) + 0.01 * rng.standard_normal((20, 2))
    model = ResponseModel(available=2 * base, base=base, process="never", harm="never", n_starts=1, n_draws=8)
    model.fit(design, losses)
    domains = Domains(
        names=tuple("abcde"[:count]), base=base, available=2 * base, tokens_per_row=np.full(count, 10.0)
    )  # fmt: skip
    problem = Problem(domains=domains, capabilities=("x", "y"))
    constraints = Constraints.from_options({"budget": "keep", "trust_region": 1.0}, problem)
    stick = Yardstick.of_losses(2)
    rows = optima(model, constraints, stick, design)
    assert len(np.unique(rows, axis=0)) == len(rows) >= 500
    assert (rows == np.rint(rows)).all()
    for atom in constraints.atoms():
        slack = 1.001 * np.abs(atom.weights).max() + 1e-3 * np.abs(atom.weights) @ base
        assert (rows @ atom.weights >= atom.lower - slack).all(), atom.label
        assert (rows @ atom.weights <= atom.upper + slack).all(), atom.label
    at_base = model.value_and_gradient(base)[0]
    chance = base * np.exp(rng.uniform(-1.0, 1.0, (300, count)))
    chance *= base.sum() / chance.sum(axis=1, keepdims=True)
    ratio, other = (stick.relative(model.values_and_gradients(v)[0], at_base) for v in (rows, chance))
    behind = [np.median((each[:, None] - ratio).min(axis=2).max(axis=1)) for each in (ratio, other)]
    assert behind[0] < behind[1] / 3


def test_the_page_of_three_domains_holds_500_mixtures_in_under_2_mb(data, text):
    assert len(data["domains"]) == 3
    assert data["choices"] >= 500
    assert len(text.encode()) < 2_000_000
