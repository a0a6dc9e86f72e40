"""A scale-up closes the loop: what it lost on search rows begins the next search, and one table shows it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from builders import WHOLE, run, small_search

from ideal_proxy.mixture.file import load_mixture
from ideal_proxy.pipeline.earlier_runs import FULL_SIZE, load_package
from ideal_proxy.pipeline.finished import load_run, search
from ideal_proxy.report.card import mixture_card
from ideal_proxy.scaleup.model import ModelSpec
from ideal_proxy.scaleup.train import ScaleUp, scale_up
from ideal_proxy.terminal import Reporter


def test_a_full_size_run_begins_the_next_search(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole / "run", folder)
    shutil.copy(whole / "mix.yaml", tmp_path)
    found = load_run(folder)
    assert found.adopted
    mixture = load_mixture(folder / "mixture.json")
    wanted = ScaleUp(
        spec=ModelSpec(name="scratch:0.1M"), baseline=True, seeds=2, fraction=0.3, device="cpu", dtype="float32"
    )
    result = scale_up(mixture, wanted, folder / "up", Reporter(quiet=True), folder=folder)
    package = load_package(folder / FULL_SIZE / "up")
    assert package.proxies == {"full": "scratch:0.1M"}
    assert [r.id.split("-")[0] for r in package.runs] == ["mixture", "mixture", "base", "base"]
    for j, entry in enumerate(result["capabilities"]):  # search rows alone: verify rows never enter a fit
        keys = package.record.reference_keys[j]
        assert set(keys.tolist()) == set(found.prepared.reference_rows(j, "search").keys.tolist())
        both = package.losses(keys)
        whole = [entry["after_all_rows"], entry["after"]]
        assert both[:2].mean() == pytest.approx(2 * whole[0] - whole[1], rel=0.1)  # two halves of about equal size
        assert np.isfinite(package.losses_before(keys))
    card = mixture_card(found)
    assert "## At full size" in card
    assert "| scratch:0.1M | strings | " in card
    page = run("report", str(folder))
    assert page.returncode == 0, page.stderr
    assert "Predicted against observed at full size" in (folder / "report.html").read_text()
    shown = run("search", "mix.yaml", "--out", str(folder), cwd=tmp_path)
    assert f"search RUN_FILE --reuse {folder} --out ANOTHER_FOLDER" in " ".join(shown.stderr.split())
    settings = small_search(proxy=WHOLE["proxy"], swarm={"runs": 4, "workers": 1}, protect="none")
    again = search(settings, tmp_path / "next", reuse=[folder])
    kind = "full-size runs of scratch:0.1M"
    lines = again.runs[again.runs["from"] == kind]
    assert len(lines) == 4
    named = [entry["name"] for entry in result["domains"]] if "domains" in result else again.domains
    volumes = again.volumes(lines)[:2]
    expected = [d.rows for d in mixture.domains]
    assert named == again.domains
    assert volumes == pytest.approx(np.array([expected, expected]), abs=4)
    trust = again.model.fidelity_[kind]
    assert (trust["runs"], trust["learned"], trust["same_level"]) == (4, True, False)
    assert any(text.startswith(kind) for text in again.result["reuse"]["trust"])
