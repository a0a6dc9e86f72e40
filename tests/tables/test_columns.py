"""Which columns are domains and metrics: exports of trackers, RegMix's tables, sums that mislead, odd text."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ideal_proxy.errors import UserError
from ideal_proxy.tables.reading import join_tables, read_metrics, read_ratios

DOMAINS = ["code", "chat", "maths"]
REGMIX = Path(__file__).parents[2].parent / "shared" / "data" / "regmix"


def shares(R: int = 30, D: int = 3, seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).dirichlet(np.ones(D), R), columns=(DOMAINS + list("defgh"))[:D])


def losses(v: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({f"eval/{d}": 2.0 - 0.8 * np.sqrt(v[d]) for d in v})


def wandb(v: pd.DataFrame, seed: int = 1) -> pd.DataFrame:
    """What wandb's table of runs exports: its own columns, the configuration and the summary side by side."""
    rng, R = np.random.default_rng(seed), len(v)
    return pd.DataFrame({
        "Name": [f"sparkling-{i}" for i in range(R)], "ID": [f"{i:03d}" for i in range(R)], "State": "finished",
        "Notes": "-", "User": "me", "Tags": "", "Created": "2026-01-01T00:00:00.000Z",
        "Runtime": rng.integers(900, 1100, R), "Hostname": "node-3", "GPU Count": 8, "gpu": rng.integers(0, 8, R),
        "lr": rng.choice([1e-4, 2e-4], R), "weight_decay": rng.choice([0.0, 0.1], R), "warmup_ratio": 0.03,
        "tokens": rng.integers(10**6, 10**6 + 999, R), **v, "_step": rng.integers(90, 110, R),
        "_timestamp": rng.random(R) + 1.7e9, "_runtime": rng.random(R) * 100, "system/gpu.0.temp": rng.random(R),
        "train/loss": rng.random(R), "train/epoch": 1, "train/grad_norm": rng.random(R),
        "eval/runtime": rng.random(R), "eval/samples_per_second": rng.random(R), **losses(v),
    })  # fmt: skip


def test_a_wandb_export_is_both_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    v, path = shares(), tmp_path / "runs.csv"
    frame = wandb(v)
    frame.loc[4, "State"], frame.loc[9, "State"] = "crashed", "running"
    frame.loc[7, ["eval/code", "eval/chat", "eval/maths"]] = np.nan
    frame.loc[8, "eval/chat"] = np.inf
    frame.to_csv(path, index=False)
    with caplog.at_level(logging.INFO):
        joined = join_tables(read_ratios(path), read_metrics(path))
    assert list(joined.ratios.columns) == DOMAINS
    assert list(joined.metrics.columns) == ["eval/code", "eval/chat", "eval/maths"]
    kept = [i for i in range(30) if i not in {4, 7, 8, 9}]
    assert list(joined.ratios.index) == [f"{i:03d}" for i in kept]
    np.testing.assert_allclose(joined.ratios, v.loc[kept])
    np.testing.assert_allclose(joined.metrics, losses(v).loc[kept])
    first = caplog.messages[0]
    assert first.startswith(f"{path}: not used: State, Notes, User,")
    assert all(f"{name}, " in first for name in ("Runtime", "Hostname", "lr", "tokens", "_step", "_timestamp"))
    reasons = "004 (crashed), 009 (running), 007 (no metric), 008 (an infinite metric)"
    assert f"4 runs left out: {reasons}." in caplog.messages


def test_an_mlflow_export_joins_by_the_column_that_both_have(tmp_path: Path) -> None:
    v = shares()
    R = len(v)
    ratios = pd.DataFrame({
        "run_id": [f"{i:x}f" for i in range(R)], "experiment_id": 0, "status": "FINISHED",
        "artifact_uri": "s3://x", "start_time": np.arange(R) + 1.7e12, "end_time": np.arange(R) + 1.8e12,
        "params.lr": 1e-4, "params.batch_size": np.arange(R) % 3, **{f"params.{d}": v[d] for d in v},
        "name": [f"run {i}" for i in range(R)],
    })  # fmt: skip
    metrics = pd.DataFrame({
        "Name": [f"run {i}" for i in range(R)], "metrics.train_runtime": np.arange(R) * 1.5,
        "metrics.gsm8k": v["maths"] ** 0.5, "metrics.epoch": 1.0, "params.code": v["code"],
    })  # fmt: skip
    ratios.loc[3, "status"] = "FAILED"
    ratios.to_csv(tmp_path / "r.csv", index=False)
    metrics.sample(frac=1.0, random_state=1).to_csv(tmp_path / "m.csv", index=False)
    joined = join_tables(read_ratios(tmp_path / "r.csv"), read_metrics(tmp_path / "m.csv"))
    assert list(joined.ratios.columns) == DOMAINS
    assert list(joined.metrics.columns) == ["gsm8k"]
    assert "run 3" not in joined.ratios.index
    assert len(joined.ratios) == R - 1
    np.testing.assert_allclose(joined.metrics["gsm8k"] ** 2, joined.ratios["maths"])


@pytest.mark.skipif(not REGMIX.exists(), reason="RegMix's published tables are not here")
@pytest.mark.parametrize(("part", "size", "runs"), [("train", "1m", 512), ("test", "60m", 256), ("test", "1m", 256)])
def test_regmix_s_tables_with_and_without_prefixes(tmp_path: Path, part: str, size: str, runs: int) -> None:
    path = REGMIX / f"{part}_mixture_{size}.csv"
    frame = pd.read_csv(path)
    table = read_ratios(path)
    assert table.values.shape == (runs, 17)
    assert list(table.values.columns) == [c.removeprefix("train_") for c in frame.columns[1:]]
    np.testing.assert_array_equal(table.values, frame.iloc[:, 1:])
    rng = np.random.default_rng(0)
    names = [c.removeprefix("train_the_pile_") for c in frame.columns]
    bare = frame.set_axis(names, axis=1).assign(
        lr=rng.choice([1e-3, 2e-3], runs), accuracy=rng.random(runs) * 0.4, total=1.0, tokens=rng.random(runs) * 1e6
    )[rng.permutation([*names, "lr", "accuracy", "total", "tokens"])]
    bare.to_csv(tmp_path / "bare.csv", index=False)
    assert set(read_ratios(tmp_path / "bare.csv").values.columns) == set(names[1:])
    assert read_metrics(REGMIX / f"{part}_pile_loss_{size}.csv").values.shape == (runs, 13)


def read(tmp_path: Path, frame: pd.DataFrame, **how: str) -> pd.DataFrame:
    frame = frame.assign(run=[f"r{i}" for i in range(len(frame))])
    frame.to_csv(tmp_path / "t.csv", index=False, **how)
    return read_ratios(tmp_path / "t.csv").values


@pytest.mark.parametrize("digits", [2, 3, 4, 16])
@pytest.mark.parametrize("total", [1, 100])
@pytest.mark.parametrize("D", [2, 3, 8])
def test_rounded_shares_and_percentages(tmp_path: Path, digits: int, total: int, D: int) -> None:
    v = shares(24, D, seed=digits)
    rng = np.random.default_rng(D)
    odd = {"lr": rng.choice([1e-4, 2e-4], 24), "weight_decay": rng.choice([0, 0.1], 24), "mmlu": rng.random(24) * 0.5}
    got = read(tmp_path, (v * total).round(digits).assign(**odd))
    assert list(got.columns) == list(v.columns)
    np.testing.assert_allclose(got, v, atol=0.6 * 10.0**-digits)


def test_of_two_sets_that_sum_the_finer_is_taken_or_the_user_asked(tmp_path: Path) -> None:
    v = shares(20, 4)
    finer = read(tmp_path, v.assign(stem=v["code"] + v["maths"], total=1.0, again=v["chat"]))
    assert list(finer.columns) == ["code", "chat", "maths", "d"]
    coarse = read(tmp_path, v.assign(stem=v["code"] + v["maths"], talk=v["chat"] + v["d"]))
    assert list(coarse.columns) == ["code", "chat", "maths", "d"]
    seen = shares(20, 4, seed=5).set_axis([f"tokens_{d}" for d in v], axis=1)
    both = pd.concat([v, seen], axis=1).assign(run=range(20))
    both.to_csv(tmp_path / "both.csv", index=False)
    with pytest.raises(UserError, match=r"code, chat, maths, d sum to 1 in every run, and so do tokens_code.*--domain"):
        read_ratios(tmp_path / "both.csv")
    asked = read_ratios(tmp_path / "both.csv", list(seen.columns)).values
    np.testing.assert_allclose(asked, seen)
    with pytest.raises(UserError, match=r"lacks law: its columns of numbers are code"):
        read_ratios(tmp_path / "both.csv", ["law"])


def test_volumes_in_rows_leave_out_what_a_tracker_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    v = pd.DataFrame(rng.integers(10, 4000, (20, 3)), columns=DOMAINS)
    odd = {"lr": rng.choice([1e-4, 2e-4], 20), "tokens": rng.integers(10**6, 10**7, 20), "Runtime": rng.random(20)}
    assert list(read(tmp_path, v.assign(**odd, **losses(v / 4000))).columns) == DOMAINS
    even = (shares(20) * 5000).round().astype(int)
    even["chat"] = 5000 - even["code"] - even["maths"]
    assert list(read(tmp_path, even.assign(**odd, priority=rng.integers(1, 9, 20))).columns) == DOMAINS


@pytest.mark.parametrize("sign", [";", "\t", ",", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_separators_and_decimal_commas(tmp_path: Path, sign: str, decimal: str) -> None:
    v = shares()
    got = read(tmp_path, v.round(3).assign(Notes="a, b; c", lr=1e-5), sep=sign, decimal=decimal)
    assert list(got.columns) == DOMAINS
    np.testing.assert_allclose(got, v, atol=6e-4)


def test_odd_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffsep=;\r\nrun;code;chat\r\n001;62,5 %;37,5%\r\n1;50 %;50 %\r\n;;\r\n1.0;;100 %\r\n".encode())
    table = read_ratios(path)
    assert list(table.values.index) == ["001", "1", "1.0"]
    np.testing.assert_allclose(table.values, [[0.625, 0.375], [0.5, 0.5], [0, 1]])
