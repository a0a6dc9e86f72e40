"""Tables: joined on ids, layouts read as they are, every fault one sentence with the cure."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ideal_proxy.errors import UserError
from ideal_proxy.response.model import ResponseModel
from ideal_proxy.tables import sheet
from ideal_proxy.tables.fitting import fit_tables, own_domains, predict_table
from ideal_proxy.tables.reading import (
    Table,
    join_tables,
    read_available,
    read_metrics,
    read_ratios,
    read_runs,
)

DOMAINS = ["code", "maths", "chat"]


def truth(v: np.ndarray) -> np.ndarray:
    return np.column_stack([1.0 + 2.0 / (1.0 + 3.0 * np.sqrt(v[:, k])) for k in (0, 1)])


def frames(R: int = 24, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    v = rng.dirichlet(np.ones(3), R)
    ids = np.arange(100, 100 + R)
    y = truth(v) + rng.normal(0.0, 0.003, (R, 2))
    ratios = pd.DataFrame(v, columns=DOMAINS)
    ratios.insert(0, "run_id", ids)
    metrics = pd.DataFrame(y, columns=["loss_a", "loss_b"])
    metrics.insert(0, "run_id", ids)
    return ratios, metrics


def write(folder: Path, ratios: pd.DataFrame, metrics: pd.DataFrame) -> tuple[Table, Table]:
    ratios.to_csv(folder / "ratios.csv", index=False)
    metrics.to_csv(folder / "metrics.csv", index=False)
    return read_ratios(folder / "ratios.csv"), read_metrics(folder / "metrics.csv")


def test_rows_are_joined_by_id_never_by_order(tmp_path: Path) -> None:
    ratios, metrics = frames()
    tables = write(tmp_path, ratios, metrics)
    shuffled = write(tmp_path, ratios, metrics.sample(frac=1.0, random_state=3))
    one, other = fit_tables(join_tables(*tables)), fit_tables(join_tables(*shuffled))
    assert one.unit == "share"
    first, second = predict_table(one, tables[0]), predict_table(other, tables[0])
    pd.testing.assert_frame_equal(first, second)
    expected = ["run"] + [f"{m}{s}" for m in ("loss_a", "loss_b") for s in ("", "_lower", "_upper")]
    assert list(first.columns) == expected
    assert list(first["run"]) == [str(i) for i in ratios["run_id"]]
    error = first["loss_a"].to_numpy() - truth(ratios[DOMAINS].to_numpy())[:, 0]
    assert np.abs(error).max() < 0.05
    assert (first["loss_a_lower"] < first["loss_a"]).all()
    assert (first["loss_a_upper"] > first["loss_a"]).all()


@pytest.mark.parametrize("maximize", [False, True])
def test_the_interval_of_a_loss_ends_above_zero(tmp_path: Path, maximize: bool) -> None:
    ratios, metrics = frames()
    metrics[["loss_a", "loss_b"]] *= np.exp(np.random.default_rng(2).normal(0.0, 1.0, (len(metrics), 2)))
    tables = write(tmp_path, ratios, metrics)
    lower = predict_table(fit_tables(join_tables(*tables), maximize=maximize), tables[0], level=0.99)["loss_a_lower"]
    assert (lower < 0).any() == maximize


def test_regmix_and_olmix_layouts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ratios, metrics = frames()
    regmix = write(
        tmp_path,
        ratios.rename(columns={"run_id": "index"} | {d: f"train_{d}" for d in DOMAINS}),
        metrics.rename(columns={"run_id": "index", "loss_a": "metric/loss_a", "loss_b": "metric/loss_b"}).assign(
            note=3
        ),
    )
    with caplog.at_level(logging.INFO):
        olmix = write(
            tmp_path,
            ratios.rename(columns={"run_id": "run"}).assign(name="swarm-1", index=range(24)),
            metrics.rename(columns={"run_id": "run"}).assign(name="swarm-1", index=range(24)),
        )
    assert "ratios.csv: not used: name." in caplog.text
    for tables in (regmix, olmix):
        assert list(tables[0].values.columns) == DOMAINS
        assert list(tables[1].values.columns) == ["loss_a", "loss_b"]
        joined = join_tables(*tables)
        np.testing.assert_allclose(joined.ratios, ratios[DOMAINS])
        np.testing.assert_allclose(joined.metrics, metrics[["loss_a", "loss_b"]])


def test_scores_rows_and_missing_values(tmp_path: Path) -> None:
    ratios, metrics = frames()
    ratios[DOMAINS] = (ratios[DOMAINS] * 4000).round() + 10
    scores = metrics.assign(loss_a=100 - 30 * metrics["loss_a"], loss_b=100 - 30 * metrics["loss_b"])
    scores.loc[3, "loss_b"] = np.nan
    available = tmp_path / "available.csv"
    pd.DataFrame({"domain": ["chat", "code", "maths"], "rows": [3000, 1000, 2000]}).to_csv(available, index=False)
    assert list(read_available(available, DOMAINS)) == [1000.0, 2000.0, 3000.0]
    tables = write(tmp_path, ratios, scores)
    model = fit_tables(join_tables(*tables), available=available, maximize=True)
    assert model.unit == "rows"
    assert model.kind == "score"
    assert (model.gradient(tables[0].values)[:, 0, 0] > 0).all()  # more code, higher score
    again = ResponseModel.from_json(model.to_json())
    pd.testing.assert_frame_equal(predict_table(model, tables[0]), predict_table(again, tables[0]))
    reordered = Table("new.csv", tables[0].values[DOMAINS[::-1]], None, None)
    pd.testing.assert_frame_equal(predict_table(model, tables[0]), predict_table(model, reordered))


def test_runs_of_another_fidelity_are_mapped_and_help(tmp_path: Path) -> None:
    new = np.random.default_rng(10).dirichlet(np.ones(3), 200)
    asked = Table("new.csv", pd.DataFrame(new, columns=DOMAINS, index=[f"n{i}" for i in range(200)]), None, None)

    def error(frame: pd.DataFrame, wanted: np.ndarray) -> float:
        return float(np.sqrt(((frame[["loss_a", "loss_b"]].to_numpy() - wanted) ** 2).mean()))

    errors = []
    for seed in range(4):  # six runs alone may be lucky
        tables = write(tmp_path, *frames(R=6, seed=seed))
        rng = np.random.default_rng(9 + seed)
        v = rng.dirichlet(np.ones(3), 20)
        full = 0.7 * truth(v) - 0.4 + rng.normal(0.0, 0.003, (20, 2))
        added = pd.DataFrame(v, columns=DOMAINS).assign(loss_a=full[:, 0], loss_b=full[:, 1], fidelity="full-size")
        added.insert(0, "run", [f"full-{i}" for i in range(20)])
        added.to_csv(tmp_path / "added.csv", index=False)
        more = read_runs(tmp_path / "added.csv", DOMAINS, ["loss_a", "loss_b"])
        alone, model = fit_tables(join_tables(*tables)), fit_tables(join_tables(*tables), add_runs=[more])
        errors.append([error(predict_table(fit, asked), truth(new)) for fit in (model, alone)])
        if seed == 0:
            np.testing.assert_allclose(model.fidelity_["full-size"]["slope"], 0.7, atol=0.1)
            assert error(predict_table(model, asked, fidelity="full-size"), 0.7 * truth(new) - 0.4) < 0.03
    with_runs, without = np.mean(errors, axis=0)
    assert with_runs < 0.8 * without
    restored = ResponseModel.from_json(model.to_json())
    assert restored.fidelity_ == model.fidelity_
    with pytest.raises(UserError, match="choose one of full-size"):
        predict_table(model, asked, fidelity="7B")


def broken(fault: str, ratios: pd.DataFrame, metrics: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    ratios, metrics = ratios.copy(), metrics.copy()
    if fault == "few":
        return ratios[:3], metrics[:3]
    if fault == "constant domain":
        ratios["chat"] = 0.25
        ratios["maths"] = 0.75 - ratios["code"] * 0.75
        ratios["code"] *= 0.75
    elif fault == "constant metric":
        metrics[["loss_a", "loss_b"]] = 2.0
    elif fault == "shares":
        ratios.loc[[2, 5], "code"] += 0.4
    elif fault == "duplicate":
        ratios.loc[1, "run_id"] = 100
    elif fault == "one table":
        return ratios[2:], metrics[:-1]
    elif fault == "no id":
        ratios = ratios.rename(columns={"run_id": "number"})
    elif fault == "empty ratio":
        ratios.loc[7, "maths"] = np.nan
    elif fault == "text":
        metrics["loss_a"] = metrics["loss_a"].astype(object)
        metrics.loc[2, "loss_a"] = "oops"
    elif fault == "negative":
        ratios.loc[0, "code"] = -0.1
    return ratios, metrics


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("few", r"^3 runs are too few to fit: give at least 4, better 12 for 3 domains\.$"),
        ("constant domain", "domain chat is the same in every run.*leave the column out"),
        ("constant metric", "Metric loss_a, loss_b does not vary over the runs: leave the column out"),
        ("shares", r"the shares of 2 runs do not sum to one \(102, 105; run 102 sums to 1\.4\): correct them"),
        ("duplicate", r"1 run ids appear more than once \(100\): give every run an id"),
        ("one table", r"^1 run ids are only in .*ratios.csv and 2 only in .*metrics.csv \(123, 100, 101\): remove"),
        ("no id", "has no run id: name its column run, run_id or index"),
        ("empty ratio", "run 107 has no number for domain maths: write 0"),
        ("text", "column loss_a of run 102 is not a number: correct it"),
        ("negative", "run 100 has a negative or infinite volume: correct the table"),
    ],
)
def test_bad_tables_are_one_sentence_with_the_cure(tmp_path: Path, fault: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        fit_tables(join_tables(*write(tmp_path, *broken(fault, *frames()))))
    assert "\n" not in str(caught.value)


def test_no_more_is_read_than_a_table_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MOST_BYTES", 1 << 20)
    with open(tmp_path / "r.csv", "wb") as file:
        file.truncate(1 << 43)
    for path in (tmp_path / "r.csv", "/dev/zero"):
        with pytest.raises(UserError, match="has more than the 1 MiB that a table may have"):
            read_ratios(path)


def test_other_domains_and_missing_files_are_named(tmp_path: Path) -> None:
    tables = write(tmp_path, *frames())
    model = fit_tables(join_tables(*tables))
    renamed = Table("new.csv", tables[0].values.rename(columns={"maths": "math"}), None, None)
    with pytest.raises(UserError, match=r"^new.csv lacks maths and has math besides, unlike the fit: name the domains"):
        predict_table(model, renamed)
    with pytest.raises(UserError, match="does not exist: check the path"):
        read_ratios(tmp_path / "nowhere.csv")
    (tmp_path / "a.csv").write_text("domain,rows\ncode,10\nmaths,0\nchat,5\n")
    with pytest.raises(UserError, match="maths has no positive number of available rows"):
        read_available(tmp_path / "a.csv", DOMAINS)
    (tmp_path / "r.csv").write_text("run,code,maths,loss_a\nx,1,0,2\n")
    with pytest.raises(UserError, match="lacks domain chat"):
        read_runs(tmp_path / "r.csv", DOMAINS, ["loss_a"])


def test_partial_join_goes_on_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ratios, metrics = frames()
    tables = write(tmp_path, ratios[2:], metrics[:-1])
    joined = join_tables(*tables, partial=True)
    assert len(joined.ratios) == 21
    assert "1 runs only in" in caplog.text


def test_own_domains_are_stated_by_name():
    domains, metrics = ["code", "a=b"], ["code", "long=code", "x"]
    assert own_domains([], domains, metrics) == [0, -1, -1]
    assert own_domains(["x=code", "long=code=a=b"], domains, metrics) == [0, 1, 0]
    for wrong in ("x", "x=nothing", "nothing=code"):
        with pytest.raises(UserError, match="must be METRIC=DOMAIN"):
            own_domains([wrong], domains, metrics)
