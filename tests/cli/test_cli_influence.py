"""`ideal-proxy influence` on a tiny model from a folder: its files, its arithmetic, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner

from ideal_proxy.cli.app import app
from ideal_proxy.config import load_config
from ideal_proxy.data.rows import read_rows
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizer import train_tokenizer
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.gradients.estimation import encode_sources, read_tau, take_step
from ideal_proxy.gradients.influence import InfluenceSettings, responses
from ideal_proxy.gradients.records import ResponseMatrix, unresolved
from ideal_proxy.mixture.apply import apply_mixture
from ideal_proxy.mixture.draws import domain_order, draw, search_verify_split, training_order
from ideal_proxy.mixture.file import load_mixture
from ideal_proxy.proxy.model import build_proxy
from ideal_proxy.proxy.records import TrainSettings
from ideal_proxy.proxy.training import train
from ideal_proxy.scaleup.model import ModelSpec, load_model, load_template
from ideal_proxy.scaleup.source import ProxySetting

NAMES = ("arithmetic", "strings", "facts")
BASE = {"arithmetic": 60, "strings": 90, "facts": 50}
CONTEXT, ROWS = 64, 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file over three demo domains, and a small model trained on its base mixture."""
    folder = tmp_path_factory.mktemp("influence")
    entries = [{"name": n, "path": f"demo:{n}?seed=1&rows=100", "base": BASE[n]} for n in NAMES]
    references = [{"name": n, "path": f"demo:{n}?seed=1&rows=60&split=reference"} for n in NAMES]
    config = {"name": "tiny", "seed": 3, "domains": entries, "capabilities": references, "proxy": {"context": CONTEXT}}
    (folder / "mix.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rows = [list(read_rows(entry["path"])) for entry in entries]
    tokenizer = train_tokenizer((text for part in rows for row in part for _, text in row.pairs), 320)
    tokens = [tokenize_rows(part, make_template(tokenizer), CONTEXT) for part in rows]
    taken = [
        (t.keys, *draw(domain_order(3, name, t.keys), BASE[name] * 6)) for name, t in zip(NAMES, tokens, strict=True)
    ]
    model = build_proxy("0.1M", len(tokenizer), CONTEXT, 0)
    settings = TrainSettings(learning_rate=5e-3, batch_rows=32, dtype="float32")
    train(model, training_order(3, list(NAMES), taken), tokens, settings)
    model.save_pretrained(str(folder / "model"))
    tokenizer.save_pretrained(str(folder / "model"))
    return folder


def ask(place: Path, *more: str, model: Path | None = None, config: str = "mix.yaml"):
    head = ["influence", "--config", str(place / config), "--model", str(model or place / "model")]
    return CliRunner().invoke(app, [*head, "--rows", str(ROWS), "--device", "cpu", *more])


@pytest.fixture(scope="module")
def asked(place: Path):
    answer = ask(place, "--out", str(place / "out"), "--quiet")
    assert answer.exit_code == 0, answer.exception
    return answer.stdout, place / "out"


def test_files_hold_what_the_library_gives(place: Path, asked) -> None:
    _, out = asked
    found = json.loads((out / "influence.json").read_text())
    rows = {n: list(read_rows(f"demo:{n}?seed=1&rows=100")) for n in NAMES}
    held = {n: list(read_rows(f"demo:{n}?seed=1&rows=60&split=reference")) for n in NAMES}
    template = make_template(AutoTokenizer.from_pretrained(str(place / "model")))
    domains = {n: tokenize_rows(part, template, CONTEXT) for n, part in rows.items()}
    references = {}
    for name, part in held.items():
        every = tokenize_rows(part, template, CONTEXT)
        references[name] = every.select(search_verify_split(every.keys))
        assert 0 < len(references[name]) < len(every), "the verify half stays unseen"
    spec = ModelSpec(name=str(place / "model"))
    model = load_model(spec, load_template(spec, ProxySetting(), [], place), context=CONTEXT, seed=0)
    supervised = [
        sum(int(t.supervised_tokens[i]) for i in draw(domain_order(3, n, t.keys), BASE[n])[0])
        for n, t in domains.items()
    ]
    settings = InfluenceSettings(gradient_rows=ROWS, factor_rows=3 * ROWS, seed=3)
    expected = responses(
        model, domains, references, [BASE[n] for n in NAMES], settings=settings, supervised_tokens=supervised
    )
    for matrix in (ResponseMatrix.load(out / "responses.npz").M, np.array(found["M"])):
        np.testing.assert_allclose(matrix, expected.M, rtol=1e-4, atol=1e-6 * np.abs(expected.M).max())
    np.testing.assert_allclose(found["se"], expected.se, rtol=1e-3)
    np.testing.assert_allclose(found["w"], np.array(supervised) / sum(supervised))
    doubt = [
        [not abs(m) > 2 * s for m, s in zip(*row, strict=True)] for row in zip(expected.M, expected.se, strict=True)
    ]
    assert found["unresolved"] == doubt
    assert found["cost"]["gradient_tokens"] == expected.cost.gradient_tokens
    assert found["cost"]["peak_memory_bytes"] > 2**26
    assert found["R"] is found["tau"] is None
    assert not list(out.glob(".influence-*"))


def test_rows_of_a_domain_lower_its_own_loss(asked) -> None:
    found = json.loads((asked[1] / "influence.json").read_text())
    M = np.array(found["M"])
    assert (np.diag(M) < 0).all()
    assert (np.argmin(M, axis=1) == np.arange(len(NAMES))).all()


def test_mixture_is_ideals_step_and_can_be_applied(asked, tmp_path: Path) -> None:
    _, out = asked
    M = ResponseMatrix.load(out / "responses.npz").M
    A = [sum(float(M[j, i]) for j in range(3)) for i in range(3)]
    wanted = [round(BASE[n] * (1 - 0.15 * a / max(map(abs, A)))) for n, a in zip(NAMES, A, strict=True)]
    mixture = load_mixture(out / "mixture.json")
    assert [d.rows for d in mixture.domains] == wanted
    assert wanted != list(BASE.values())
    assert [d.base_rows for d in mixture.domains] == list(BASE.values())
    assert mixture.verdict is None
    assert mixture.gain is None
    assert "not verified by training" in mixture.provenance["verified"]
    assert mixture.template is not None
    assert mixture.template["context"] == CONTEXT
    applied = apply_mixture(mixture, tmp_path / "rows")
    assert list(applied.domain_rows.values()) == wanted


def test_terminal_fits_80_columns_and_marks_doubt(asked) -> None:
    text, out = asked
    assert max(len(line) for line in text.splitlines() if not line.startswith("Mixture file: ")) <= 80
    found = json.loads((out / "influence.json").read_text())
    assert text.split("\n\n")[0].count("?") == np.sum(found["unresolved"])
    for phrase in ("not verified by training", "gradient tokens", "mixture.json", "holds no budget"):
        assert phrase in " ".join(text.split())
    printed = text.splitlines()[2].split()[1].split("±")
    power = int(text.split("1e")[1].split(":")[0])
    assert float(printed[0]) * 10**power == pytest.approx(found["M"][0][0], abs=0.051 * 10**power)


def test_r_is_m_plus_tau_q_and_drives_the_step(place: Path, tmp_path: Path) -> None:
    tau = {"arithmetic": -0.2, "strings": -0.4, "facts": -0.1}
    options = [part for name, value in tau.items() for part in ("--tau", f"{name}={value}")]
    answer = ask(place, "--method", "first-order", "--on-disk", "--json", "--out", str(tmp_path / "out"), *options)
    assert answer.exit_code == 0, answer.exception
    found = json.loads(answer.stdout)
    q = np.array(list(BASE.values())) / sum(BASE.values())
    R = np.array(found["M"]) + np.array(list(tau.values()))[:, None] * q
    np.testing.assert_allclose(found["R"], R)
    np.testing.assert_allclose(found["proposal"]["A"], R.sum(0))
    assert found["proposal"]["from"] == "R"
    assert found["method"] == "first-order"
    assert (found["unresolved_R"] == (np.abs(R) <= 2 * np.array(found["se_R"]))).all()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["influence.json", "mixture.json", "responses.npz"]


def test_step_stays_within_the_bounds_of_the_run_file(place: Path, asked) -> None:
    config = load_config(place / "mix.yaml")
    pins = ({"pinned": True}, {"min": 100}, {"max": 20})
    limited = config.model_copy(
        update={"domains": tuple(d.model_copy(update=p) for d, p in zip(config.domains, pins, strict=True))}
    )
    template = make_template(AutoTokenizer.from_pretrained(str(place / "model")))
    step = take_step(ResponseMatrix.load(asked[1] / "responses.npz"), encode_sources(limited, template, CONTEXT), NAMES)
    assert step.rows[0] == 60
    assert step.rows[1] >= 100
    assert step.rows[2] == 20
    assert "at most: facts 20 rows" in step.active
    impossible = config.domains[0].model_copy(update={"min": 90, "max": 10})
    broken = config.model_copy(update={"domains": (impossible, *config.domains[1:])})
    with pytest.raises(UserError, match=r"domain arithmetic: min \(90 rows\) is above max \(10 rows\)"):
        encode_sources(broken, template, CONTEXT)


def test_unknown_errors_are_unresolved() -> None:
    values, errors = np.array([1.0, -1.0, 1.0, 0.0]), np.array([0.4, 0.6, np.nan, 0.0])
    assert unresolved(values, errors).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["--method", "exact"], UsageError, "choose implicit or first-order"),
        (["--tau", "strings=x"], UsageError, "must be CAPABILITY=NUMBER, of arithmetic, strings, facts"),
        (["--tau", "strings=nan"], UsageError, "must be CAPABILITY=NUMBER"),
        (["--tau", "strings=-0.1"], UsageError, "names no 'arithmetic'"),
        (["--device", "abacus"], UsageError, "--device abacus: this machine or PyTorch has none"),
        (["--context", "4096"], UsageError, "more than the 64 tokens"),
        (["--gguf", "weights.gguf"], UserError, "cannot load the tokenizer"),
    ],
)
def test_bad_options_are_one_sentence(place: Path, tmp_path: Path, options, kind, message) -> None:
    answer = ask(place, "--out", str(tmp_path / "out"), *options)
    assert isinstance(answer.exception, kind)
    assert message in str(answer.exception)
    assert "\n" not in str(answer.exception)


def test_missing_model_scratch_and_foreign_folder_are_refused(place: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in str(ask(place, model=tmp_path / "none").exception)
    assert "learned nothing yet" in str(ask(place, model=Path("scratch:1M")).exception)
    assert "does not exist" in str(ask(place, config="none.yaml").exception)
    (tmp_path / "mixture.json").write_text("{}")
    refused = ask(place, "--out", str(tmp_path)).exception
    assert "choose another --out" in str(refused)
    assert (tmp_path / "mixture.json").read_text() == "{}"
    (tmp_path / "file").write_text("")
    assert "cannot make the folder" in str(ask(place, "--out", str(tmp_path / "file" / "x")).exception)


def test_tau_may_be_left_out() -> None:
    assert read_tau([], NAMES) is None
    assert read_tau(["b=-1", "a=2e-1"], ["a", "b"]) == [0.2, -1.0]
