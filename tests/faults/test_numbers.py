"""Numbers at their edges: an answer, or one sentence; never a traceback, never a NaN in an answer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from builders import run, small_search
from finished_run import folder as finished_folder

from ideal_proxy.batching import distinct
from ideal_proxy.data.rows import read_rows
from ideal_proxy.errors import UserError
from ideal_proxy.response.model import ResponseModel


def tables(folder: Path, shares: np.ndarray, losses: np.ndarray) -> list[str]:
    names = [f"d{n}" for n in range(shares.shape[1])]
    pd.DataFrame(shares, columns=names).rename_axis("run").to_csv(folder / "r.csv")
    pd.DataFrame(losses, columns=[f"m{n}" for n in range(losses.shape[1])]).rename_axis("run").to_csv(folder / "m.csv")
    return [
        "fit",
        "--ratios",
        str(folder / "r.csv"),
        "--metrics",
        str(folder / "m.csv"),
        "--out",
        str(folder / "f.json"),
    ]


RNG = np.random.default_rng(0)
SHARES = RNG.dirichlet(np.ones(3), 12)
LOSSES = 3 - SHARES[:, :1] ** 0.5 + 0.01 * RNG.standard_normal((12, 1))
WITHOUT = np.column_stack([SHARES[:, :2] / SHARES[:, :2].sum(1, keepdims=True), np.zeros(12)])
EDGES = {
    "all mixtures equal": (np.tile([0.2, 0.3, 0.5], (12, 1)), LOSSES),
    "one run": (SHARES[:1], LOSSES[:1]),
    "two runs": (SHARES[:2], LOSSES[:2]),
    "a domain always zero": (WITHOUT, LOSSES),
    "all losses equal": (SHARES, np.full((12, 1), 2.5)),
    "losses of zero": (SHARES, np.zeros((12, 1))),
    "huge losses": (SHARES, 1e300 * LOSSES),
    "tiny losses": (SHARES, 1e-300 * LOSSES),
    "one run that exploded": (SHARES, np.vstack([LOSSES[:-1], [[1e12]]])),
    "a loss that is not a number": (SHARES, np.vstack([LOSSES[:-1], [[np.nan]]])),
    "a loss that is infinite": (SHARES, np.vstack([LOSSES[:-1], [[np.inf]]])),
    "no loss at all": (SHARES, np.full((12, 1), np.nan)),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_fit_at_the_edge_answers_or_says_why(name: str, tmp_path: Path) -> None:
    done = run(*tables(tmp_path, *EDGES[name]))
    if done.returncode:
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: ")
        return
    assert "nan" not in done.stdout.lower().replace("finance", "")
    done = run("predict", str(tmp_path / "f.json"), "--ratios", str(tmp_path / "r.csv"))
    assert done.returncode == 0, done.stderr
    lines = [line.split(",") for line in done.stdout.splitlines()[1:]]
    assert all(np.isfinite(float(cell)) for line in lines for cell in line[1:] if cell)


def test_volumes_of_a_billion_rows_against_ten(tmp_path: Path) -> None:
    available = np.array([1e9, 10.0])
    volumes = available * np.exp(RNG.uniform(-1, 1, (14, 2)))
    losses = 1 + 2 / (1 + np.sqrt(volumes / available)) + 0.003 * RNG.standard_normal((14, 2))
    model = ResponseModel(available=available, base=available, process="never", harm="never", n_starts=1, n_draws=16)
    model.fit(pd.DataFrame(volumes, columns=["many", "few"]), pd.DataFrame(losses, columns=["a", "b"]))
    found = model.predict(pd.DataFrame([available, available * [1.5, 0.5]], columns=["many", "few"]))
    assert np.isfinite(found).all()
    assert np.abs(found[0] - 2).max() < 0.1
    assert json.loads(json.dumps(model.to_json(), allow_nan=False))


def test_a_fit_of_what_is_not_finite_is_refused() -> None:
    model = ResponseModel(available=np.full(3, 100.0), base=np.full(3, 100.0))
    with pytest.raises((UserError, ValueError), match=r"(?i)finite|nan|infinit|missing|number"):
        model.fit(pd.DataFrame([[1.0, np.inf, 2.0]] * 5), pd.DataFrame([[1.0]] * 5))


def test_a_what_if_beyond_every_number_is_one_sentence(tmp_path: Path) -> None:
    for amount in ("1e400", "-5", "nan", "9" * 400, "1e300"):
        done = run("what-if", str(finished_folder()), "--set", f"coding={amount}")
        assert done.returncode in {0, 1, 2}, amount
        assert not done.returncode or done.stderr.splitlines()[-1].startswith("error: "), amount
        assert "nan" not in done.stdout.lower()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    """Logits near the largest half still have the loss that float64 gives them, within the type's own steps."""
    from ideal_proxy.proxy.head import head_loss

    torch.manual_seed(0)
    hidden, weight = (torch.randn(40, 8) * 30).to(dtype), (torch.randn(50, 8) * 30).to(dtype)
    labels = torch.randint(0, 50, (40,))
    exact = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    found = head_loss(hidden, weight, labels, 1.0)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(exact), rel=0.01)


def test_what_fuzzing_found_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("run,a,b,loss\n" + "".join(f"{n},{1e307 * (n + 1)},{n},{n}\n" for n in range(9)))
    table = str(tmp_path / "t.csv")
    done = run("fit", "--ratios", table, "--metrics", table, "--out", str(tmp_path / "f.json"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    (tmp_path / "mix.yaml").write_text(json.dumps(small_search(swarm={"runs": []})))
    done = run("check", str(tmp_path / "mix.yaml"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    (tmp_path / "long.csv").write_text(f"n{'9' * 3_000},b\n1,2\n3,4\n")
    with pytest.raises(UserError, match="no known format") as told:
        list(read_rows(tmp_path / "long.csv"))
    assert len(str(told.value)) <= 2_000
    assert "..." in str(told.value)


@pytest.mark.parametrize(("name", "value"), [("covariance_", None), ("widening_", "inf"), ("noise_", [1.0, 2.0, 3.0])])
def test_a_fit_whose_intervals_were_edited_is_refused(name: str, value: object) -> None:
    rows = pd.DataFrame(1 + RNG.random((12, 2)), columns=["a", "b"])
    options = {"process": "never", "harm": "never", "n_starts": 1, "n_draws": 8}
    model = ResponseModel(available=np.full(2, 9.0), base=np.ones(2), **options)
    told = model.fit(rows, pd.DataFrame(2 + RNG.random((12, 2)), columns=["x", "y"])).to_json()
    assert ResponseModel.from_json(told).predict(rows, return_interval=True)
    with pytest.raises(UserError, match="damaged"):
        ResponseModel.from_json({**told, name: value})


def test_many_names_are_told_apart_at_once() -> None:
    started = time.process_time()
    distinct([SimpleNamespace(name=f"{n}") for n in range(40_000)])
    assert time.process_time() - started < 5  # one with another takes half a minute
    with pytest.raises(ValueError, match="'7' stands twice"):
        distinct([SimpleNamespace(name=f"{n % 39_000}") for n in range(7, 39_008)])
