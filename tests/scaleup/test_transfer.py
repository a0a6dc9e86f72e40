"""Transfer on synthetic surfaces whose optimum moves with scale: the law follows it, shares do not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import finished_run
import numpy as np
import pandas as pd
import pytest
from builders import write_rows
from scipy.optimize import minimize
from typer.testing import CliRunner

from ideal_proxy.domains import Domains
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.mixture.file import CapabilityResult, DomainVolume, MixtureFile, load_mixture, save_mixture
from ideal_proxy.response.law import Volumes
from ideal_proxy.response.model import ResponseModel
from ideal_proxy.response.prediction import compare
from ideal_proxy.scaleup.size_law import SizeLaw, SizeSurface, rank_agreement
from ideal_proxy.scaleup.transfer import transfer_mixture, transfer_volumes
from ideal_proxy.terminal import Reporter

AVAILABLE = np.array([300.0, 20_000.0, 20_000.0])
BASE = np.array([300.0, 350.0, 350.0])
NAMES = ("small", "wide", "other")
QUIET = Reporter(quiet=True)


def surface(theta: np.ndarray, available: np.ndarray = AVAILABLE) -> SizeSurface:
    volumes = Volumes(float(BASE.mean()), 0.0, available, np.full(len(available), 3.0))
    bounds = np.tile([0.0, 3.0], (len(theta), 1))
    return SizeSurface(theta, np.tile(theta, (8, 1, 1)), bounds, volumes, np.full(len(theta), 1e-4))


def theta_of(floor: float, span: float, alpha: float, gamma: float, worth: list[float]) -> list[float]:
    share = floor / 3.0
    return [np.log(share / (1 - share)), np.log(span), np.log(alpha), np.log(gamma / (1 - gamma)), *np.log(worth)]


# Capability 0 wants the small domain most, which is soon used up; capability 1 wants the other two.
TRUTH = np.array([
    theta_of(0.5, 2.0, 0.8, 0.6, [4.0, 0.6, 0.05]),
    theta_of(0.6, 2.0, 0.8, 0.6, [0.05, 0.4, 2.0]),
])  # fmt: skip


def objective(law: SizeSurface, v: np.ndarray, base: np.ndarray) -> float:
    return float(np.mean(law.value_and_gradient(v)[0] / law.value_and_gradient(base)[0]))


def optimum(law: SizeSurface, total: float, cap: float = 4.0) -> np.ndarray:
    """The minimum by brute force, independent of the optimiser: Nelder-Mead over softmax shares from a grid's best."""
    base = BASE * total / BASE.sum()
    top = cap * law.volumes.available

    def volumes(z: np.ndarray) -> np.ndarray:
        return total * np.exp(np.append(z, 0.0)) / np.exp(np.append(z, 0.0)).sum()

    def cost(z: np.ndarray) -> float:
        v = volumes(z)
        return objective(law, np.minimum(v, top), base) + 10 * float(np.maximum(v - top, 0).sum()) / total

    grid = [np.array([a, b]) for a in np.linspace(-4, 3, 15) for b in np.linspace(-3, 3, 13)]
    start = min(grid, key=cost)
    found = minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-10, "maxiter": 2000})
    return volumes(found.x)


def carry(mode: str, rows: np.ndarray, total: int, law: SizeSurface | ResponseModel | None, **more):  # type: ignore[no-untyped-def]
    return transfer_volumes(
        mode,
        rows,
        Domains(names=NAMES, base=BASE, available=AVAILABLE),
        ("a", "b"),
        total=total,
        law=law,
        **more,
    )


def test_surface_gradient_is_exact() -> None:
    law = surface(TRUTH)
    v = np.array([700.0, 500.0, 900.0])
    loss, slope = law.value_and_gradient(v)
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-2
        numeric = (law.value_and_gradient(v + step)[0] - law.value_and_gradient(v - step)[0]) / 2e-2
        np.testing.assert_allclose(slope[:, i], numeric, rtol=1e-5)
    draws, by = law.draws_value_and_gradient(v)
    np.testing.assert_allclose(draws, np.tile(loss, (8, 1)))
    np.testing.assert_allclose(by[3], slope)


def test_law_follows_an_optimum_that_moves_and_share_does_not() -> None:
    law = surface(TRUTH)
    small, total = optimum(law, 1000.0), 30_000
    best = optimum(law, total)
    assert abs(small[0] / 1000 - best[0] / total) > 0.1, "the surface is chosen so that the optimum moves"
    base = BASE * total / BASE.sum()
    followed, kept = carry("law", small, total, law), carry("share", small, total, law)
    assert followed.rows.sum() == kept.rows.sum() == total
    np.testing.assert_allclose(followed.rows, best, atol=0.01 * total)
    regret = [objective(law, t.rows.astype(float), base) - objective(law, best, base) for t in (followed, kept)]
    assert abs(regret[0]) < 1e-4
    assert regret[1] > 0.005, "0.5 % of the objective"
    np.testing.assert_allclose(kept.rows / total, small / 1000, atol=1e-3)
    assert followed.predicted is not None
    ratios = followed.predicted.ratios
    here = law.value_and_gradient(followed.rows * 1.0)[0]
    np.testing.assert_allclose([r.value for r in ratios], here / followed.predicted.other)
    assert all(r.lower < r.value < r.upper for r in ratios)
    assert any("extrapolated" in note for note in followed.notes)


def test_law_fitted_to_noisy_proxies_follows_too() -> None:
    """The same through the fit: runs around a small budget, then the full one with repeats saturating."""
    law, rng = surface(TRUTH), np.random.default_rng(0)
    V = np.clip(BASE * np.exp(rng.uniform(-1.5, 2.5, (40, 3))), 5, 4 * AVAILABLE)
    L = np.stack([law.value_and_gradient(v)[0] for v in V]) + 0.003 * rng.standard_normal((40, 2))
    model = ResponseModel(available=AVAILABLE, base=BASE, process="never", harm="never", n_draws=16).fit(V, L)
    total = 12_000
    small, best, base = optimum(law, 1000.0), optimum(law, total), BASE * total / BASE.sum()
    followed, kept = carry("law", small, total, model), carry("share", small, total, model)
    regret = [objective(law, t.rows.astype(float), base) - objective(law, best, base) for t in (followed, kept)]
    assert regret[0] < 0.5 * regret[1]


def test_repeat_keeps_repeats_when_the_data_grow() -> None:
    rows = np.array([600.0, 200.0, 0.0])
    grown = np.array([900.0, 20_000.0, 60_000.0])
    moved = transfer_volumes(
        "repeat",
        rows,
        Domains(names=NAMES, base=BASE, available=AVAILABLE),
        ("a",),
        total=None,
        full_available=grown,
    )
    np.testing.assert_allclose(moved.rows / grown, rows / AVAILABLE)
    assert moved.rows.tolist() == [1800, 200, 0]
    scaled = transfer_volumes(
        "repeat",
        rows,
        Domains(names=NAMES, base=BASE, available=AVAILABLE),
        ("a",),
        total=1000,
        full_available=grown,
    )
    assert scaled.rows.tolist() == [900, 100, 0]
    assert "scaled by 0.500" in scaled.notes[0]
    shares = transfer_volumes(
        "share",
        rows,
        Domains(names=NAMES, base=BASE, available=AVAILABLE),
        ("a",),
        total=4000,
    )
    assert shares.rows.tolist() == [3000, 1000, 0]
    assert "small: more than 4 times over" in shares.notes[0]


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UsageError, match="must be share, repeat or law"):
        carry("same", BASE, 1000, None)
    with pytest.raises(UsageError, match="needs the law"):
        carry("law", BASE, 1000, None)
    with pytest.raises(UsageError, match=r"^mode law needs") as refused:
        carry("law", BASE, 1000, None)
    assert "--" not in str(refused.value), "scale-up names the mode by another option than transfer"
    with pytest.raises(UsageError, match=r"are more than 161,200, all domains 4 times over"):
        carry("law", BASE, 200_000, surface(TRUTH))


def test_the_law_is_recommended_only_where_there_is_one() -> None:
    rows = np.array([600.0, 200.0, 200.0])
    bare, lawful = (carry("share", rows, 4000, law).notes for law in (None, surface(TRUTH)))
    assert bare == ("small: more than 4 times over; there is no law here to judge that",)
    assert lawful == ("small: more than 4 times over; the law was not asked, consider mode law",)


def moving(z: float) -> SizeSurface:
    """The true law of a model exp(z) times the reference size: bigger ones need the first domain less and less."""
    shift = np.zeros_like(TRUTH)
    shift[:, 0] = -0.15 * z
    shift[0, 4] = -0.35 * z
    shift[1, 5] = 0.25 * z
    return surface(TRUTH + shift, np.array([3000.0, 20_000.0, 20_000.0]))


@pytest.fixture(scope="module")
def sizes() -> tuple[np.ndarray, np.ndarray, np.ndarray, SizeLaw]:
    rng = np.random.default_rng(1)
    mixtures = BASE * np.exp(rng.uniform(-1.6, 1.6, (14, 3)))
    V, L, N = [], [], []
    for size in (1e6, 3e6, 1e7):
        for v in mixtures:
            V.append(v)
            L.append(moving(np.log(size / 3e6)).value_and_gradient(v)[0] + 0.002 * rng.standard_normal(2))
            N.append(size)
    V, L, N = np.array(V), np.array(L), np.array(N)
    law = SizeLaw(available=np.array([3000.0, 20_000.0, 20_000.0]), base=BASE).fit(V, L, N)
    return V, L, N, law


def test_several_sizes_extrapolate_to_a_larger_one(sizes: tuple) -> None:
    """Predictions at ten times the largest proxy: closer than the largest proxy's own losses, inside the intervals."""
    V, _, _, law = sizes
    truth = moving(np.log(1e8 / 3e6))
    found, held = law.at(1e8), law.at(1e7)
    errors, stale, inside = [], [], []
    rng = np.random.default_rng(2)
    base = truth.value_and_gradient(BASE)[0]
    for v in BASE * np.exp(rng.uniform(-1.2, 1.2, (30, 3))):
        true = truth.value_and_gradient(v)[0] / base
        draws = found.draws_value_and_gradient(v)[0] / found.draws_value_and_gradient(BASE)[0]
        errors.append(found.value_and_gradient(v)[0] / found.value_and_gradient(BASE)[0] - true)
        stale.append(held.value_and_gradient(v)[0] / held.value_and_gradient(BASE)[0] - true)
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        inside.append((low - 0.003 <= true) & (true <= high + 0.003))
    assert np.abs(errors).mean() < 0.6 * np.abs(stale).mean()
    assert np.mean(inside) > 0.75
    wide = [np.std(law.at(size).draws_value_and_gradient(V[0])[0], axis=0).mean() for size in (3e6, 1e8, 1e10)]
    assert wide[0] < wide[1] < wide[2], "intervals widen with the distance"


def test_volumes_at_the_larger_size_beat_those_of_the_small_one(sizes: tuple) -> None:
    _, _, _, law = sizes
    available = np.array([3000.0, 20_000.0, 20_000.0])
    truth, total = moving(np.log(1e8 / 3e6)), 1000
    best, small = optimum(truth, total), optimum(moving(np.log(1e6 / 3e6)), total)
    moved = transfer_volumes(
        "law",
        small,
        Domains(names=NAMES, base=BASE, available=available),
        ("a", "b"),
        total=total,
        law=law.at(1e8),
    )
    regret = [objective(truth, v.astype(float), BASE) - objective(truth, best, BASE) for v in (moved.rows, small)]
    assert regret[0] < 0.5 * regret[1]


def test_sizes_that_disagree_are_said(sizes: tuple) -> None:
    V, L, N, _ = sizes
    alike = rank_agreement(V, L, N)
    assert [entry.scales for entry in alike] == [(1e6, 3e6), (3e6, 1e7)]
    assert all(entry.agrees and entry.mixtures == 14 for entry in alike)
    turned = L.copy()
    turned[N == 1e7, 1] = -turned[N == 1e7, 1]
    verdicts = rank_agreement(V, turned, N)
    assert not verdicts[1].agrees
    text = verdicts[1].sentence(("a", "b"))
    assert "DISAGREE" in text
    assert "b -0.9" in text or "b -1.0" in text


def test_one_size_cannot_be_extrapolated(sizes: tuple) -> None:
    V, L, N, law = sizes
    with pytest.raises(UserError, match="two or more"):
        SizeLaw(available=AVAILABLE, base=BASE).fit(V[N == 1e6], L[N == 1e6], N[N == 1e6])
    with pytest.raises(UserError, match="at least 4"):
        SizeLaw(available=AVAILABLE, base=BASE).fit(V[:16], L[:16], N[:16])
    again = SizeLaw(available=np.array([3000.0, 20_000.0, 20_000.0]), base=BASE).fit(V, L, N)
    np.testing.assert_array_equal(again.theta_, law.theta_)


def fitted_file() -> MixtureFile:
    """A mixture file with a law fitted to 24 runs without noise."""
    law, rng = surface(TRUTH), np.random.default_rng(0)
    V = BASE * np.exp(rng.uniform(-1.5, 1.5, (24, 3)))
    L = pd.DataFrame([law.value_and_gradient(v)[0] for v in V], columns=["a", "b"])
    model = ResponseModel(available=AVAILABLE, base=BASE, process="never", harm="never", n_draws=16)
    model.fit(pd.DataFrame(V, columns=NAMES), L)
    domains = [
        DomainVolume(
            name=name,
            source="x",
            fingerprint="0" * 64,
            available=int(u),
            rows=r,
            tokens=(10 + 10 * (name == "small")) * r,
            supervised_tokens=3 * r,
            base_rows=int(b),
        )
        for name, u, b, r in zip(NAMES, AVAILABLE, BASE, (500, 200, 300), strict=True)
    ]
    return MixtureFile(
        domains=domains,
        verdict="improves",
        gain=0.05,
        law=model.to_json(),
        capabilities=[CapabilityResult(name=n, base_loss=1.0, predicted_loss=0.9, verified_loss=0.9) for n in "ab"],
    )


def rows_of(mixture: MixtureFile) -> np.ndarray:
    return np.array([d.rows for d in mixture.domains], dtype=float)


def test_a_mixture_file_is_carried_with_its_predictions() -> None:
    law, mixture = surface(TRUTH), fitted_file()
    moved = transfer_mixture(mixture, "law", 3000, Reporter(quiet=True))
    assert moved.total_rows == 3000
    assert sum(d.base_rows for d in moved.domains) == 3000
    assert [d.tokens for d in moved.domains] == [f * d.rows for f, d in zip((20, 10, 10), moved.domains, strict=True)]
    assert sum(d.share for d in moved.domains) == pytest.approx(1)
    assert moved.verdict is None, "nothing was verified at these volumes"
    assert moved.capabilities[0].verified_loss is None
    for capability in moved.capabilities:
        assert capability.predicted_lower < capability.predicted_loss < capability.predicted_upper
    rows = np.array([d.rows for d in moved.domains], dtype=float)
    assert moved.capabilities[0].predicted_loss == pytest.approx(law.value_and_gradient(rows)[0][0], rel=0.05)
    assert moved.provenance["transfer"]["mode"] == "law"
    shares = transfer_mixture(mixture.model_copy(update={"law": None}), "share", 3000, Reporter(quiet=True))
    assert [d.rows for d in shares.domains] == [1500, 600, 900]
    assert shares.capabilities[0].predicted_loss is None


def test_the_run_files_limits_hold_at_full_size_too() -> None:
    """Pins, groups in tokens, the search's own repeat cap and must-not-drop come from the file."""
    mixture = fitted_file()
    law = ResponseModel.from_json(mixture.law)
    free = rows_of(transfer_mixture(mixture, "law", 3000, QUIET))
    assert free[0] > 3 * AVAILABLE[0], (
        "without limits of its own the small domain is gone through more than three times"
    )

    def limited(**options: object) -> np.ndarray:
        objective = options.pop("objective", None)
        told = {"budget": "keep", "budget_unit": "tokens", "repeat_cap": 4.0, **options}
        held = mixture.model_copy(update={"provenance": {"constraints": told, "objective": objective}})
        found = rows_of(transfer_mixture(held, "law", 3000, QUIET))
        assert found.sum() == 3000
        return found

    assert limited(repeat_cap=2.0)[0] <= 2 * AVAILABLE[0] < free[0]
    assert limited(pinned=["other"], budget_unit="rows")[2] == pytest.approx(3000 * BASE[2] / BASE.sum(), abs=1)
    assert limited(lower={"wide": "1500 rows"})[1] >= 1500 > free[1]
    tokens = np.array([d.tokens / d.rows for d in mixture.domains])
    grouped = limited(groups=["small <= 20 %"])
    assert grouped[0] * tokens[0] / (grouped @ tokens) <= 0.2 + 1e-3, "20 % of the tokens, not of the rows"
    assert grouped[0] * tokens[0] / (grouped @ tokens) > 0.19
    for_a = {"kind": "weighted", "weights": {"a": 1.0}}

    def second(rows: np.ndarray) -> float:
        return float(law.value_and_gradient(rows)[0][1] / law.value_and_gradient(BASE * 3)[0][1])

    greedy = limited(objective=for_a)
    kept = limited(objective=for_a, must_not_drop={"b": 0.01})
    assert second(greedy) > 1.1 > 1.011 > second(kept), "b may rise by 1 % and no more"


def in_tokens(*rows: int, **limits: object) -> MixtureFile:
    """A mixture file of these rows from a search whose budget keeps the tokens, 20 in a row of `small` and 10 else."""
    mixture = fitted_file()
    told = {
        "constraints": {"budget": "keep", "budget_unit": "tokens", "repeat_cap": 4.0, **limits},
        "tokens_per_row": dict(zip(NAMES, (20.0, 10.0, 10.0), strict=True)),
    }
    domains = [
        d.model_copy(update={"rows": r, "tokens": d.tokens // d.rows * r})
        for d, r in zip(mixture.domains, rows, strict=True)
    ]
    return mixture.model_copy(update={"domains": domains, "provenance": told})


@pytest.mark.parametrize("rows", [(400, 200, 300), (0, 900, 400)], ids=["moved", "dropped"])
@pytest.mark.parametrize("mode", ["repeat", "share"])
def test_a_proposal_at_its_own_size_is_predicted_as_the_search_did(mode: str, rows: tuple[int, ...]) -> None:
    mixture = in_tokens(*rows)
    searched = compare(ResponseModel.from_json(mixture.law), np.array(rows, dtype=float), BASE, pairs=3)
    moved = transfer_mixture(mixture, mode, None, QUIET)
    assert tuple(d.rows for d in moved.domains) == rows
    assert [d.base_rows for d in moved.domains] == BASE.tolist()
    changes = [c.predicted_loss / c.base_loss for c in moved.capabilities]
    np.testing.assert_allclose(changes, [r.value for r in searched.ratios])


def test_the_law_is_asked_beside_a_base_of_as_many_tokens() -> None:
    mixture = in_tokens(400, 200, 300, pinned=["other"])
    moved = transfer_mixture(mixture, "law", 2700, QUIET)
    base = np.array([d.base_rows for d in moved.domains])
    tokens = np.array([20, 10, 10])
    assert moved.total_rows == 2700 != base.sum()
    assert base @ tokens == pytest.approx(rows_of(moved) @ tokens, rel=1e-3)
    assert moved.domains[2].rows == pytest.approx(moved.domains[2].base_rows, rel=5e-3), "pinned: as in base"


def test_other_rows_at_full_size_change_where_repeats_saturate(tmp_path: Path) -> None:
    """The small domain has ten times the rows at full size: the law gives it more, and the file names the new rows."""
    mixture = fitted_file()
    path = tmp_path / "small.jsonl"
    write_rows(path, [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(3000)])
    save_mixture(tmp_path / "mixture.json", mixture)

    def command(*more: str) -> MixtureFile:
        out = tmp_path / f"full{len(more)}.json"
        options = [
            "transfer",
            str(tmp_path / "mixture.json"),
            "--mode",
            "law",
            "--total-rows",
            "9000",
            "--out",
            str(out),
        ]
        done = CliRunner().invoke(app, [*options, *more])
        assert done.exit_code == 0, done.output
        assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(tmp_path) not in line)
        assert re.search(r"small\s+500\s", done.stdout)
        return load_mixture(out)

    from ideal_proxy.cli.app import app

    same, grown = command(), command("--data", f"small={path}")
    assert grown.domains[0].available == 3000
    assert grown.domains[0].source == str(path)
    assert grown.domains[0].fingerprint != mixture.domains[0].fingerprint
    assert grown.domains[1].fingerprint == mixture.domains[1].fingerprint
    assert grown.total_rows == same.total_rows == 9000
    assert grown.domains[0].rows > 1.5 * same.domains[0].rows
    truth = surface(TRUTH, np.array([3000.0, *AVAILABLE[1:]]))
    best = optimum(truth, 9000.0)
    assert abs(grown.domains[0].rows - best[0]) < 0.15 * best[0]
    wrong = CliRunner().invoke(
        app, ["transfer", str(tmp_path / "mixture.json"), "--out", str(tmp_path / "x"), "--data", "n=x"]
    )
    assert "--data 'n=x' must be NAME=PATH" in str(wrong.exception)


def searches(folder: Path, turned: bool = False) -> list[Path]:
    """Two finished searches, of 1M and 4M proxies: the larger ones need `coding` less (or rank the other way round)."""
    places = []
    for size in (1_000_000, 4_000_000):
        place = folder / f"{size}{turned}"
        shutil.copytree(finished_run.folder(), place)
        frame = pd.read_parquet(place / "runs.parquet")
        volumes = frame[[f"rows/{name}" for name in finished_run.DOMAINS]].to_numpy()
        losses = by_size(volumes, size)
        if turned and size > 1_000_000:
            losses = losses.max(axis=0) + 0.2 - losses / 2
        for j, name in enumerate(finished_run.CAPABILITIES):
            frame[f"search_loss/{name}"] = losses[:, j]
        frame.to_parquet(place / "runs.parquet", index=False)
        plan = json.loads((place / "plan.json").read_text()) | {"parameters": size}
        (place / "plan.json").write_text(json.dumps(plan))
        places.append(place)
    return places


def by_size(volumes: np.ndarray, size: float) -> np.ndarray:
    """True losses (R, J): the worth of `coding` falls with the fourth root of the size."""
    weight = np.array([[2.0 * (size / 1e6) ** -0.45, 0.1, 0.05], [0.05, 0.4, 1.6 * (size / 1e6) ** 0.1]])
    return 0.5 + 2.5 / (1 + np.sqrt(np.atleast_2d(volumes) / 1000.0) @ weight.T)


def searched_mixture() -> MixtureFile:
    tokens = finished_run.TOKENS
    return MixtureFile(
        domains=[
            DomainVolume(
                name=name, source="x", fingerprint=f"{i}" * 64, available=int(finished_run.AVAILABLE[i]),
                rows=int(finished_run.PROPOSAL[i]), base_rows=int(finished_run.BASE[i]),
                tokens=int(finished_run.PROPOSAL[i] * tokens[i]),
            )
            for i, name in enumerate(finished_run.DOMAINS)
        ],
        capabilities=[CapabilityResult(name=name, base_loss=1.0) for name in finished_run.CAPABILITIES],
    )  # fmt: skip


def test_searches_at_two_sizes_give_the_law_at_a_third(tmp_path: Path) -> None:
    from ideal_proxy.cli.app import app

    save_mixture(tmp_path / "mixture.json", searched_mixture())
    options = ["transfer", str(tmp_path / "mixture.json"), "--out", str(tmp_path / "full.json"), "--total-rows", "3300"]
    swarms = [word for run in searches(tmp_path) for word in ("--swarm", str(run))]
    done = CliRunner().invoke(app, [*options, *swarms, "--parameters", "64M"])
    assert done.exit_code == 0, done.output
    assert "parameters: 6.4e+07 is 16 times outside the searches" in done.stderr
    assert "rank mixtures alike" in done.stderr
    found = rows_of(load_mixture(tmp_path / "full.json"))
    regret = [mean_ratio(v, 64e6) - mean_ratio(best_at(64e6), 64e6) for v in (found, best_at(1e6))]
    assert regret[0] < 0.5 * regret[1], "closer to the optimum at 64M than the 1M optimum is"
    assert found.sum() == 3300
    predicted = [
        c.predicted_upper / c.base_loss - c.predicted_lower / c.base_loss
        for c in load_mixture(tmp_path / "full.json").capabilities
    ]
    assert min(predicted) > 0
    swarms = [word for run in searches(tmp_path, turned=True) for word in ("--swarm", str(run))]
    turned = CliRunner().invoke(app, [*options, *swarms, "--parameters", "64M"])
    assert "DISAGREE on the ranking" in turned.stderr
    assert "make any transfer doubtful" in turned.stderr
    for wrong, said in (
        ([*swarms], "--parameters of the full-size model is needed"),
        ([*swarms[:2], "--parameters", "1B"], "one proxy size and one share"),
        ([*swarms, "--parameters", "big"], "give a number such as 135M"),
        ([*swarms, "--parameters", "1B", "--mode", "share"], "only --mode law asks"),
    ):
        refused = CliRunner().invoke(app, [*options, *wrong])
        assert isinstance(refused.exception, UsageError)
        assert said in str(refused.exception)
    other = searched_mixture()
    changed = other.model_copy(
        update={"domains": [other.domains[0].model_copy(update={"fingerprint": "9" * 64}), *other.domains[1:]]}
    )
    save_mixture(tmp_path / "mixture.json", changed)
    refused = CliRunner().invoke(app, [*options, *swarms, "--parameters", "1B"])
    assert "searched other rows of coding" in str(refused.exception)


def mean_ratio(v: np.ndarray, size: float) -> float:
    base = finished_run.BASE
    return float((by_size(v, size) / by_size(base, size)).mean())


def best_at(size: float) -> np.ndarray:
    """The optimum of 3,300 rows by a grid, independent of the optimiser."""
    first, second = np.meshgrid(np.arange(0, 3301, 25.0), np.arange(0, 3301, 25.0), indexing="ij")
    grid = np.stack([first, second, 3300 - first - second], axis=-1).reshape(-1, 3)
    grid = grid[grid[:, 2] >= 0]
    ratios = (by_size(grid, size) / by_size(finished_run.BASE, size)).mean(axis=1)
    return grid[int(ratios.argmin())]
