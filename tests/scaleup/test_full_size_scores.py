"""At full size: metrics judge as losses do, and answers of base and proposal are compared before a gain is believed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_rows
from pretrained_folder import CONTEXT, pretrained_folder
from scipy import stats

from ideal_proxy.config import dump_config, parse_config
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.data.template import make_template
from ideal_proxy.data.tokenizing import tokenize_rows
from ideal_proxy.errors import UsageError
from ideal_proxy.mixture.draws import search_verify_split
from ideal_proxy.mixture.file import CapabilityResult, DomainVolume, MixtureFile
from ideal_proxy.proxy.items import Items
from ideal_proxy.scaleup import guard, train
from ideal_proxy.scaleup.model import ModelSpec
from ideal_proxy.scaleup.result import scale_up_tables
from ideal_proxy.scaleup.train import ScaleUp, scale_up
from ideal_proxy.store import read_json
from ideal_proxy.terminal import Reporter

QUIET = Reporter(quiet=True)
NAMES = ("strings", "facts")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    pretrained_folder(folder / "model")
    return folder


@pytest.fixture(scope="module")
def mixture(place: Path) -> MixtureFile:
    """More strings and fewer facts than base."""
    domains, capabilities = [], []
    for name, rows, base in (("strings", 160, 20), ("facts", 20, 160)):
        source = f"demo:{name}?rows=160"
        found = list(read_rows(source))
        domains.append(DomainVolume(
            name=name, source=source, fingerprint=source_fingerprint(row_keys(found)), available=len(found), rows=rows,
            base_rows=base,
        ))  # fmt: skip
        path = write_rows(
            place / f"{name}.jsonl",
            [{"prompt": row.prompt, "completion": row.answer, "family": n % 5}
             for n, row in enumerate(read_rows(f"demo:{name}?rows=60&split=reference"))],
        )  # fmt: skip
        capabilities.append(CapabilityResult(name=name, source=path, base_loss=2.0))
    proxy = {"context": CONTEXT, "batch_rows": 16, "learning_rate": 2e-3}
    return MixtureFile(seed=3, domains=domains, capabilities=capabilities, provenance={"proxy": proxy})


def run_file(mixture: MixtureFile, place: Path) -> str:
    config = {
        "domains": [{"name": d.name, "path": d.source} for d in mixture.domains],
        "capabilities": [
            {"name": c.name, "path": c.source, **({} if c.name == "facts" else {
                "metric": {"score": "loss", "cluster": "family", "scale": 2.0}})}
            for c in mixture.capabilities
        ],
    }  # fmt: skip
    (place / "mix.yaml").write_text(dump_config(parse_config(config)))
    return str(place / "mix.yaml")


def test_a_metric_judges_and_answers_are_looked_at(
    mixture: MixtureFile, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ScaleUp(
        spec=ModelSpec(name=str(place / "model")), device="cpu", evaluations=0, baseline=True, seeds=2, save_seconds=0,
        metrics=run_file(mixture, place),
    )  # fmt: skip
    out = place / "out"
    monkeypatch.setattr(train, "IMPROVES", "any")
    result = scale_up(mixture, wanted, out, QUIET)
    strings, facts = result["capabilities"]
    assert "metric" not in facts
    metric = strings["metric"]
    kept = [read_json(out / "runs" / f"{arm}-{result['seeds'][0]}" / "scores.json") for arm in ("mixture", "base")]
    items = [Items.from_json(found["strings"]["items"]) for found in kept]
    assert metric["after_by_seed"][0] == pytest.approx(items[0].mean)
    assert metric["base_after_by_seed"][0] == pytest.approx(items[1].mean)
    assert len(set(items[0].clusters)) == 5
    rows = list(read_rows(str(place / "strings.jsonl")))
    unseen = ~search_verify_split(row_keys(rows))
    assert set(items[0].ids) <= {f"{row.key:016x}" for row, mine in zip(rows, unseen, strict=True) if mine}
    assert metric["change"]["value"] < 0  # nats: more strings, less loss
    gain = -metric["change"]["value"] / 2.0  # over its scale; of facts the ratio of losses
    assert result["gain"]["value"] == pytest.approx((gain + 1 - facts["ratio"]["value"]) / 2, abs=2e-3)
    assert "guard" not in result

    monkeypatch.setattr(train, "IMPROVES", result["gain"]["answer"])  # whatever it was
    (out / "result.json").unlink()
    again = scale_up(mixture, replace(wanted, resume=True), out, QUIET)
    looked = again["guard"]
    assert looked["prompts"] == {"strings": sum(unseen[:60]), "facts": looked["prompts"]["facts"]}
    assert [entry["measure"] for entry in looked["measures"][:4]] == list(guard.MEASURES)
    assert looked["sentence"] in " ".join(scale_up_tables(again, "out").split()).replace("Answers: ", "")
    assert "Metrics, which judge instead of the loss" in scale_up_tables(again, "out")
    assert max(map(len, scale_up_tables(again, "out").splitlines())) <= 80


def test_a_run_file_without_a_metric_is_refused(mixture: MixtureFile, place: Path, tmp_path: Path) -> None:
    path = Path(run_file(mixture, tmp_path))
    path.write_text(path.read_text().replace("name: strings", "name: other"))
    wanted = ScaleUp(spec=ModelSpec(name=str(place / "model")), metrics=str(path))
    with pytest.raises(UsageError, match="no capability of the mixture file"):
        scale_up(mixture, wanted, tmp_path / "out", QUIET)


def test_models_from_scratch_are_not_looked_at() -> None:
    wanted = ScaleUp(spec=ModelSpec(name="scratch:0.1M"))
    found = train._look_at_answers(wanted, None, {}, None, "cpu", QUIET)  # type: ignore[arg-type]
    assert found["sentence"] == "not looked at: a model from scratch has no answers to speak of"


class Letters:
    """A tokenizer of letters."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(i) for i in ids)


def tokens(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_what_is_measured_of_an_answer() -> None:
    answers = [tokens(text) for text in ("abcdefgh.", "abcdabcdabcd", "<think>so", "<think>so</think>yes.", ".")]
    found = guard.measures(answers, {ord(".")}, 12, Letters())
    assert found[:, 0].tolist() == [9, 12, 9, 21, 1]
    assert found[0, 1] == 0
    assert found[1, 1] == pytest.approx(1 - 4 / 9)  # abcd, bcda, cdab, dabc of nine pieces
    assert found[:, 2].tolist() == [0, 1, 0, 0, 0]
    assert found[:, 3].tolist() == [0, 0, 1, 0, 0]


def test_a_rise_is_told_where_chance_cannot_be_it() -> None:
    rng = np.random.default_rng(1)
    same = rng.integers(5, 60, 50).astype(float)
    assert guard.rise(same, same) == 1.0
    assert guard.rise(same, same + rng.integers(1, 9, 50)) < 1e-8
    assert guard.rise(same + 5, same) > 0.999
    flags = np.zeros(50)
    worse = flags.copy()
    worse[:6] = 1
    assert guard.rise(flags, worse) == pytest.approx(stats.binomtest(6, 6, 0.5, alternative="greater").pvalue)
    false = [any(guard._holm([guard.rise(rng.random(50), rng.random(50)) for _ in range(8)])) for _ in range(300)]
    assert np.mean(false) < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    entries = [
        {"capability": "code", "measure": "length", "base": 40.0, "proposal": 90.0, "rises": True},
        {"capability": "code", "measure": "never ends", "base": 0.0, "proposal": 0.3, "rises": True},
        {"capability": "code", "measure": "repetition", "base": 0.0, "proposal": 0.3, "rises": False},
    ]
    assert guard.told(entries) == (
        "look at the answers before you adopt it, what surely rises is code: length 40 to 90 tokens; "
        "code: never ends 0% to 30%"
    )


def test_prompts_end_where_the_answer_begins(place: Path) -> None:
    from transformers import AutoTokenizer

    from ideal_proxy.proxy.generation import ends_of, prompts_of

    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    template = make_template(tokenizer)
    rows = list(read_rows("demo:facts?rows=5"))
    prompts, answers = prompts_of(tokenize_rows(rows, template))
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        assert tokenizer.decode(prompt) == f"<|user|>\n{row.prompt}<|end|><|assistant|>\n"
        assert tokenizer.decode(answer) == f"{row.answer}<|end|>"
    assert tokenizer("<|end|>")["input_ids"][-1] in ends_of(answers, tokenizer)
    assert json.dumps(sorted(ends_of(answers, tokenizer)))
