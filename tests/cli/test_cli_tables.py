"""`fit`, `predict` and `optimize` on tables, as a user runs them."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from builders import ROOT, run, start
from scipy.stats import spearmanr

DOMAINS = ("web", "code", "books", "math")
METRICS = ("web_loss", "code_loss", "math_loss")
REGMIX = ROOT.parent / "shared" / "data" / "regmix"


def truth(shares: np.ndarray) -> np.ndarray:
    """Three losses that fall with their own domain, and a little with books."""
    own = shares[:, [0, 1, 3]]
    return np.array([2.0, 1.5, 1.2]) + np.array([2.0, 3.0, 2.5]) * (1 + 12 * own**0.6 + 2 * shares[:, [2]]) ** -0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.ones(4), 60)
    losses = truth(shares) + rng.normal(0, 0.005, (60, 3))
    ids = rng.permutation(1000)[:60]
    ratios = pd.DataFrame(shares, columns=[f"train_{d}" for d in DOMAINS]).assign(run=ids)
    metrics = pd.DataFrame(losses, columns=[f"metric/{m}" for m in METRICS]).assign(run=ids, name="x")
    ratios[:40].to_csv(folder / "ratios.csv", index=False)
    metrics[:40].sample(frac=1, random_state=1).to_csv(folder / "metrics.csv", index=False)  # another order
    ratios[40:].to_csv(folder / "new.csv", index=False)
    metrics[40:].to_csv(folder / "new_metrics.csv", index=False)
    answer = run("fit", "--ratios", "ratios.csv", "--metrics", "metrics.csv", "--out", "fit.json", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert max(map(len, answer.stdout.splitlines())) <= 80
    assert "web_loss" in answer.stdout
    return folder


def test_predictions_rank_unseen_mixtures_and_intervals_cover(folder):
    answer = run("predict", "fit.json", "--ratios", "new.csv", "--out", "predicted.csv", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    predicted = pd.read_csv(folder / "predicted.csv").set_index("run")
    assert list(predicted) == [f"{m}{end}" for m in METRICS for end in ("", "_lower", "_upper")]
    observed = pd.read_csv(folder / "new_metrics.csv").set_index("run").loc[predicted.index]
    covered = []
    for metric in METRICS:
        true = observed[f"metric/{metric}"]
        assert spearmanr(predicted[metric], true)[0] > 0.97
        covered.append(true.between(predicted[f"{metric}_lower"], predicted[f"{metric}_upper"]).mean())
    assert 0.8 < np.mean(covered) <= 1
    width = predicted["code_loss_upper"] - predicted["code_loss_lower"]
    assert width.mean() < 0.3 * observed["metric/code_loss"].std() * 3.3


def test_predict_without_out_prints_csv(folder):
    answer = run("predict", "fit.json", "--ratios", "new.csv", cwd=folder)
    assert answer.stdout.startswith("run,web_loss,web_loss_lower")
    assert len(answer.stdout.splitlines()) == 21


def test_optimum_is_near_the_true_one_and_constraints_hold(folder):
    answer = run(
        "optimize", "fit.json", "--upper", "code=20 %", "--group", "web + books <= 50 %", "--out", "mixture.json",
        "--trust-region", "none", cwd=folder,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert max(map(len, answer.stdout.splitlines())) <= 80
    mixture = json.loads((folder / "mixture.json").read_text())
    shares = {d["name"]: d["share"] for d in mixture["domains"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["code"] <= 0.2 + 1e-6
    assert shares["web"] + shares["books"] <= 0.5 + 1e-6
    assert any("code" in name for name in mixture["constraints_active"])
    for command in (("apply",), ("export", "--to", "trl")):
        answer = run(*command, "mixture.json", "--out", "rows", cwd=folder)
        assert answer.returncode == 1, "it names no rows, whatever lies in the folder"
        assert "names no rows in the mixture file; `optimize` writes volumes alone" in " ".join(answer.stderr.split())
    found = truth(np.array([[shares[d] for d in DOMAINS]]))
    base = truth(np.array([[d["share"] / (1 + d["change"]) for d in mixture["domains"]]]))
    grid = np.random.default_rng(0).dirichlet(np.ones(4), 20_000)
    allowed = grid[(grid[:, 1] <= 0.2) & (grid[:, 0] + grid[:, 2] <= 0.5)]
    best = (truth(allowed) / base).mean(axis=1).min()
    assert (found / base).mean() < best + 0.01


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("upper: {code: 20%}\nupper: {web: 20%}\n", "the key 'upper' stands twice"),
        ("[" * 5_000, "nested too deeply for a file of constraints"),
        ("- code\n", "must be a mapping"),
    ],
)
def test_a_file_of_constraints_is_read_as_a_run_file_is(folder, text, told):
    (folder / "limits.yaml").write_text(text)
    answer = run("optimize", "fit.json", "--constraints", "limits.yaml", "--out", "limited.json", cwd=folder)
    assert answer.returncode == 2
    assert told in " ".join(answer.stderr.split())
    assert not (folder / "limited.json").exists()


def test_columns_that_are_not_used_reach_the_terminal_harmless_and_few(folder, tmp_path):
    strange = {f"\x1b]0;pwn\x07\x1b[31mRED{n}": "x" for n in range(500)} | {"y" * 5_000: "x"}
    ratios = pd.read_csv(folder / "ratios.csv")
    pd.concat([pd.DataFrame(strange, index=ratios.index), ratios], axis=1).to_csv(tmp_path / "ratios.csv", index=False)
    tables = ("--ratios", "ratios.csv", "--metrics", str(folder / "metrics.csv"))
    answer = start("fit", *tables, "--out", "fit.json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "RED0" in answer.stderr
    assert "and 471 more" in answer.stderr
    assert not re.search(r"[\x07\x1b]", answer.stderr)
    assert max(map(len, answer.stderr.splitlines())) < 2_000


def test_a_must_not_drop_and_a_front(folder):
    answer = run(
        "optimize", "fit.json", "--objective", "weighted", "--weight", "math_loss=1", "--must-not-drop", "web_loss",
        "--pareto", "math_loss:web_loss", "--out", "kept.json", cwd=folder,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "Pareto front" in answer.stdout
    kept = {c["name"]: c for c in json.loads((folder / "kept.json").read_text())["capabilities"]}
    assert kept["math_loss"]["predicted_loss"] < kept["math_loss"]["base_loss"]
    assert kept["web_loss"]["predicted_loss"] <= kept["web_loss"]["base_loss"] + 1e-9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lower", "web=70 %", "--lower", "code=60 %"], "web"),
        (["--upper", "cod=10 %"], 'did you mean "code"?'),
        (["--weight", "math_loss=1"], "weighted"),
        (["--objective", "best"], "choose mean, weighted or worst"),
    ],
)
def test_bad_options_are_one_sentence(folder, arguments, says):
    answer = run("optimize", "fit.json", *arguments, "--out", "bad.json", cwd=folder)
    assert answer.returncode in {1, 2}
    assert answer.stderr.startswith("error: ")
    assert says in answer.stderr
    assert not (folder / "bad.json").exists()


def test_bad_tables_are_one_sentence(folder):
    lost = pd.read_csv(folder / "metrics.csv").iloc[3:]
    lost.to_csv(folder / "lost.csv", index=False)
    answer = run("fit", "--ratios", "ratios.csv", "--metrics", "lost.csv", "--out", "x.json", cwd=folder)
    assert answer.returncode == 1
    assert "3 run ids are only in ratios.csv" in answer.stderr
    (folder / "not.json").write_text("{}")
    answer = run("predict", "not.json", "--ratios", "new.csv", cwd=folder)
    assert "holds no fit" in answer.stderr


@pytest.mark.skipif(not REGMIX.exists(), reason="RegMix's tables are not beside the checkout (../shared/data/regmix)")
def test_regmix_as_published(tmp_path):
    lines = (REGMIX / "train_mixture_1m.csv").read_text().splitlines()
    (tmp_path / "ratios.csv").write_text("\n".join(lines[:41]) + "\n")
    answer = run(
        "fit", "--ratios", "ratios.csv", "--metrics", str(REGMIX / "train_pile_loss_1m.csv"), "--partial",
        "--out", "fit.json", cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    run("predict", "fit.json", "--ratios", str(REGMIX / "test_mixture_1m.csv"), "--out", "p.csv", cwd=tmp_path)
    predicted = pd.read_csv(tmp_path / "p.csv").set_index("run")
    observed = pd.read_csv(REGMIX / "test_pile_loss_1m.csv").set_index("index").loc[predicted.index]
    ranks = [spearmanr(predicted[m.removeprefix("metric/")], observed[m])[0] for m in observed]
    assert np.mean(ranks) > 0.96


def test_optimize_takes_short_names_that_only_one_has(folder):
    command = ("optimize", "fit.json", "--objective", "weighted", "--weight", "web=1", "--out", "short.json")
    answer = run(*command, "--must-not-drop", "math", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert "note: math is taken for math_loss" in answer.stderr
    assert "must not drop: math_loss" in " ".join(answer.stdout.split())
    full = run(*command, "--must-not-drop", "math_loss", cwd=folder)
    assert (full.stdout, "math is taken" in full.stderr) == (answer.stdout, False)
    several = run(*command, "--must-not-drop", "loss", cwd=folder)
    assert several.returncode == 2
    assert 'Unknown capability "loss"' in several.stderr


@pytest.mark.skipif(not REGMIX.exists(), reason="RegMix's tables are not beside the checkout (../shared/data/regmix)")
def test_the_page_s_commands_work_on_regmix_s_own_columns(tmp_path):
    for name, source in (
        ("mixtures", "train_mixture_1m"),
        ("losses", "train_pile_loss_1m"),
        ("new", "test_mixture_1m"),
    ):
        lines = (REGMIX / f"{source}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.csv").write_text("".join(lines[:31]), encoding="utf-8")
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "--ratios mixtures.csv" in text]
    for line in block.splitlines():
        answer = run(*shlex.split(line)[1:], cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
    shares = {d["name"]: d["share"] for d in json.loads((tmp_path / "mixture.json").read_text())["domains"]}
    assert shares["the_pile_github"] <= 0.3 + 1e-6
    assert len(pd.read_csv(tmp_path / "predicted.csv")) == 30
