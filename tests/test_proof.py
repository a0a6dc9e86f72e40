"""The proof's suites, its accounts and its predictions, on small made-up numbers; no model is trained here."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from builders import ROOT, write_rows

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import efficiency
import exact_link
import gpu
import pretrained
import proof
import real
import suites
from peers import ours
from peers.task import Task


def test_traces_are_right_and_the_same_each_time():
    made = suites.traces(0.1)
    assert made == suites.traces(0.1)
    for question, answer in made["long_traces/train"]:
        numbers = [int(n) for n in re.findall(r"\d+", question)]
        assert answer.endswith(f"Answer: {sum(numbers)}")
        steps = re.findall(r"(\d+) \+ (\d+) = (\d+)", answer)
        assert [int(b) for _, b, _ in steps] == numbers
        assert all(int(a) + int(b) == int(c) for a, b, c in steps)
    for name in ("long_traces", "short_sums", "chat"):
        asked = [{question for question, _ in made[f"{name}/{part}"]} for part in ("train", "reference")]
        assert not asked[0] & asked[1]


def test_skills_have_a_shuffled_and_a_copied_domain_and_unseen_questions():
    pytest.importorskip("reasoning_gym")
    made = suites.skills(0.02)
    domains = [name.split("/")[0] for name in made if name.endswith("/train")]
    capabilities = [name.split("/")[0] for name in made if name.endswith("/reference")]
    assert len(domains) == 18
    assert set(capabilities) - set(domains) == set(suites.WITHOUT_DOMAIN)
    assert set(domains) - set(capabilities) == set(suites.POISONED)
    assert made["copy/train"] == made[f"{suites.COPIED}/train"]
    products = [(re.findall(r"\d+", question), int(answer)) for question, answer in made["shuffled/train"]]
    assert sum(int(n[0]) * int(n[1]) == answer for n, answer in products) <= 3
    assert sorted(int(n[0]) * int(n[1]) for n, _ in products) == sorted(answer for _, answer in products)
    for name in capabilities:
        asked = [
            {question for question, _ in made.get(f"{name}/{part}", [])} for part in ("train", "reference", "test")
        ]
        assert not (asked[0] & asked[1] | asked[0] & asked[2] | asked[1] & asked[2])


def test_the_suite_drawn_by_lot_shares_no_task_with_the_others():
    pytest.importorskip("reasoning_gym")
    made = suites.unseen(0.02)
    domains = {name.split("/")[0] for name in made if name.endswith("/train")}
    capabilities = {name.split("/")[0] for name in made if name.endswith("/reference")}
    assert len(domains) == 16
    assert capabilities - domains == set(suites.DRAWN_WITHOUT_DOMAIN)
    assert not capabilities & {*suites.ROWS, *suites.WITHOUT_DOMAIN, suites.SHUFFLED}
    for name in capabilities:
        asked = [{question for question, _ in made.get(f"{name}/{part}", [])} for part in ("train", "reference")]
        assert not asked[0] & asked[1]


def test_intervals_of_a_step_shown_today_are_those_that_were_committed_with_it():
    """From a committed prediction the fit's own error is found again, so another belief can be held against it."""

    class Fit:
        residual_scale_ = np.array([0.01, 0.02, 0.01, 0.03])

        def value_and_gradient(self, v):
            return np.array([1.0, 2.0, 1.0, 3.0]) * np.exp(-np.array([0.3, 0.1, -0.05, 0.0]) * (v[0] - 1.0)), None

        def draws_value_and_gradient(self, v):
            rng = np.random.default_rng(3)
            return self.value_and_gradient(v)[0] * np.exp(0.05 * (v[0] - 1.0) * rng.standard_normal((400, 4))), None

    task = Task(np.ones(1), np.ones(1), np.ones(1), 4 * np.ones(1))
    names = ["a", "b", "c", "d"]
    early = real.predicted(Fit(), task, np.array([2.0]), "RegMix", 3, names, real.FIRST_STEP)
    now = real.predicted(Fit(), task, np.array([2.0]), "RegMix", 3, names, real.today())
    bounds = np.array([now["ratios"][name] for name in names])
    assert np.log(bounds[:, 0]) == pytest.approx([-0.3, -0.1, 0.05, 0.0], abs=1e-4)
    shown = np.array([early["ratios"][name] for name in names])
    for side, sign in ((1, -1), (2, 1)):
        just = np.log(bounds[:, side])
        assert real.inside_by_the_step(shown, just - sign * 2e-4, real.FIRST_STEP) == [True] * 4
        assert real.inside_by_the_step(shown, just + sign * 2e-4, real.FIRST_STEP) == [False] * 4
    from ideal_proxy.response import LARGER_SIZE

    again = real.gain_by_the_step(early, real.FIRST_STEP, LARGER_SIZE)
    assert again == pytest.approx(now["gain"], abs=2e-4)
    assert now["gain"][2] - now["gain"][1] > early["gain"][2] - early["gain"][1]


def test_cases_that_err_together_widen_the_share_inside():
    alike = [np.ones(20), np.ones(20), np.ones(20), np.zeros(20)]  # one capability is wrong in all mixtures
    mixed = list(np.array(alike).T)
    wide, narrow = (tuple(map(int, re.findall(r"\d+", proof.resampled(part)))) for part in (alike, mixed))
    assert narrow == (75, 75)
    assert wide[0] <= 25
    assert wide[1] == 100


def test_a_capability_weighs_what_its_loss_is_worth_in_exact_match():
    rng = np.random.default_rng(0)
    log_loss = rng.normal(0.0, 0.3, (14, 3))
    exact = 0.5 + np.stack([-0.4 * log_loss[:, 0], 0.0 * log_loss[:, 1], -0.2 * log_loss[:, 2]], axis=1)
    exact += 0.01 * rng.standard_normal(exact.shape)
    slope, error = exact_link.slopes(exact, np.exp(log_loss))
    assert np.abs(slope - [-0.4, 0.0, -0.2]).max() < 0.03
    assert (error < 0.03).all()
    unsure, error = exact_link.slopes(exact[:, :1] + 0.5 * rng.standard_normal((14, 1)), np.exp(0.01 * log_loss[:, :1]))
    assert abs(unsure[0]) < 0.1 < error[0] < exact_link.DOUBT + 1e-9


def test_an_answer_is_exact_where_greedy_decoding_writes_it(tmp_path):
    import torch
    from pretrained_folder import pretrained_folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ideal_proxy.data.rows import read_rows

    folder = pretrained_folder(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|end|>"
    lines, wanted = [], []
    for number, prompt in enumerate(row.prompt for row in read_rows("demo:facts?rows=12&seed=7")):
        asked = tokenizer(f"<|user|>\n{prompt}<|end|><|assistant|>\n", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([asked])
        with torch.no_grad():
            written = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=tokenizer.eos_token_id)[0]
        said = tokenizer.decode(written[len(asked) :], skip_special_tokens=True)
        right = number % 3 > 0 and int(written[-1]) == tokenizer.eos_token_id
        lines.append({"prompt": prompt, "completion": said if number % 3 else f"{said} no"})
        wanted.append(right)
    path = write_rows(tmp_path / "rows.jsonl", lines)
    exact, nats = exact_link.answered(model, tokenizer, list(read_rows(path)))
    assert exact.tolist() == wanted
    assert {True, False} == set(wanted)
    assert (nats[:, 0] > 0).all()
    lengths = [len(tokenizer(line["completion"], add_special_tokens=False)["input_ids"]) + 1 for line in lines]
    assert nats[:, 1].tolist() == lengths


def test_accounts_of_the_curve():
    def rows(name: str, runs: int, regrets: list[float]) -> list[dict]:
        return [
            {"family": "law", "noise": 0.03, "seed": s, "name": name, "runs": runs, "regret": r, "best": 3.0}
            for s, r in enumerate(regrets)
        ]

    mine, theirs = [0.1, 0.2, 0.3, 0.2], [0.5, 0.5, 0.8, 0.6]
    told = efficiency.gather([
        *rows("ours", 16, mine), *rows("RegMix", 256, theirs), *rows("RegMix, mixtures in the box", 256, [9.0] * 4)
    ])  # fmt: skip
    found = efficiency.against(told, ("law", 0.03), 16, efficiency.RIVALS, 256)
    assert found["rival"] == "RegMix"
    assert found["difference"][0] == pytest.approx(np.mean(mine) - np.mean(theirs))
    assert (efficiency.held(found), efficiency.first(found)) == ("yes", "ours")
    swapped = efficiency.gather([*rows("ours", 16, theirs), *rows("RegMix", 256, mine)])
    lost = efficiency.against(swapped, ("law", 0.03), 16, efficiency.RIVALS, 256)
    assert (efficiency.held(lost), efficiency.first(lost)) == ("no", "**RegMix**")
    few = efficiency.gather([*rows("ours", 16, mine[:2]), *rows("RegMix", 256, theirs[:2])])
    assert efficiency.held(efficiency.against(few, ("law", 0.03), 16, efficiency.RIVALS, 256)) == "open"
    assert efficiency.against(told, ("law", 0.03), 32, efficiency.RIVALS, 512) is None


def test_predictions_are_written_before_outcomes_and_held_against_them(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightgbm")
    monkeypatch.setattr(real, "HERE", tmp_path)
    names = ["mathematics", "coding", "reasoning", "instruction", "trust"]
    base = np.array([4e4, 4e3, 3e4, 1.2e4, 2e4])
    task = Task(base, base / real.shares_of("sft5", names), base * np.exp(-2.0), base * np.exp(2.0))
    volumes, seeds = ours.design(task, 18, 0)
    rng = np.random.default_rng(0)

    def losses(v, power):
        return 3.0 * (1.0 + np.asarray(v) / 1e4) ** -power

    table = {
        "suite": "sft5", "size": "0.1M", "fraction": 0.05, "domains": names, "capabilities": names,
        "base_tokens": base.tolist(), "volumes": volumes.tolist(), "seeds": seeds.tolist(),
        "losses": (losses(volumes, 0.2) * np.exp(0.005 * rng.standard_normal(volumes.shape))).tolist(),
        "before": [3.2] * 5,
    }  # fmt: skip
    (tmp_path / "real_sft5_pool.json").write_text(json.dumps(table))
    given = argparse.Namespace(suite="sft5", seeds=2)
    real.propose(given)
    assert "ours" in capsys.readouterr().out
    told = json.loads((tmp_path / "predictions" / "sft5.json").read_text())["mixtures"]
    assert all(sum(record["tokens"]) == pytest.approx(base.sum(), rel=1e-3) for record in told.values())
    assert told["ours"]["gain"][0] > 0
    real.show(given)
    assert "nothing is observed" in (tmp_path / "real_sft5.md").read_text()
    with (tmp_path / "real_sft5.jsonl").open("w") as file:
        for seed in (101, 102):
            for name, tokens in {"base": base, **{n: r["tokens"] for n, r in told.items()}}.items():
                row = {"contender": name, "seed": seed, "size": "1M", "losses": losses(tokens, 0.15).tolist()}
                file.write(json.dumps(row) + "\n")
    real.show(given)
    line = next(line for line in (tmp_path / "real_sft5.md").read_text().splitlines() if line.startswith("| ours |"))
    true = 100.0 * (1.0 - np.mean(losses(told["ours"]["tokens"], 0.15) / losses(base, 0.15)))
    assert f"{true:+.2f} [" in line
    assert "| yes |" in line
    kept = tmp_path / "predictions" / "sft5.json"
    said = json.loads(kept.read_text())
    added = said["mixtures"].pop("RegMix")
    said["mixtures"]["ours"]["gain"][0] = 0.5
    kept.write_text(json.dumps(said))
    real.propose(given)
    again = json.loads(kept.read_text())["mixtures"]
    assert again["ours"]["gain"][0] == 0.5  # what was said before outcomes stays
    assert again["RegMix"] == added


def test_the_page_of_a_pretrained_model_pairs_seeds_and_holds_predictions_against_them(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "HERE", tmp_path)
    monkeypatch.setattr(pretrained, "OUT", tmp_path / "real_smollm2.jsonl")
    (tmp_path / "predictions").mkdir()
    mixture = {"gain": [0.1, 0.05, 0.15], "ratios": {"a": [0.8, 0.7, 0.9], "b": [1.0, 0.99, 1.01]}}
    told = {"capabilities": ["a", "b"], "pairs": 3, "mixtures": dict.fromkeys(pretrained.ARMS[1:], mixture)}
    (tmp_path / "predictions" / "smollm2.json").write_text(json.dumps(told))
    rows = [
        {"contender": "untuned", "seed": 0, "losses": [5.0, 5.0], "exact": [0.0, 0.05], "tests": 40, "dtype": "float32"}
    ]
    for seed, level in ((1, 1.0), (2, 2.0)):  # seeds differ by more than mixtures do
        rows += [
            {"contender": "base", "seed": seed, "losses": [level, level], "exact": [0.2, 0.2 * seed], "tokens": 100,
             "tests": 200, "dtype": "float32"},
            {"contender": "ours", "seed": seed, "losses": [0.8 * level, 1.1 * level], "exact": [0.3, 0.3 * seed],
             "tokens": 100, "tests": 200, "dtype": "float32"},
            {"contender": "ours", "seed": seed, "losses": [9.0, 9.0], "exact": [0.0, 0.0], "tokens": 100, "tests": 40,
             "dtype": "float32"},
        ]  # fmt: skip
    (tmp_path / "real_smollm2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pretrained.show(argparse.Namespace())
    page = (tmp_path / "real_smollm2.md").read_text().splitlines()
    line = next(line for line in page if line.startswith("| ours |"))
    assert "| 2 | 200 | 37.50 % | +50.00 [+50.00, +50.00] |" in line
    assert "| +10.00 [+5.00, +15.00] | +5.00 [+5.00, +5.00] | 1 of 2 |" in line
    assert any(line.startswith("| equal rows | 0 |") for line in page)
    assert next(line for line in page if line.startswith("| a |")).startswith("| a | 0.0 | 5.000 | 20.0 | 1.500 | 30.0")


def test_what_was_not_run_on_a_gpu_says_so(tmp_path):
    gpu.show(tmp_path, tmp_path / "gpu.md")
    rows = [line for line in (tmp_path / "gpu.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    assert all("not run" in row for row in rows)
    told = {"device": "x", "workers": {"4": {"tokens_per_second": 1234.5}}, "one": {}}
    (tmp_path / "gpu_speed.json").write_text(json.dumps(told))
    gpu.show(tmp_path, tmp_path / "gpu.md")
    assert "1,234" in (tmp_path / "gpu.md").read_text()
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks/proof/gpu.sh")], check=True)


@pytest.mark.slow
def test_contenders_that_train_one_proxy_find_the_domain_that_is_wanted(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmarks/gradients"))
    import online
    from problem import prepare_rows

    from ideal_proxy.data.rows import read_rows

    names = ("arithmetic", "facts", "formats")
    train = {name: list(read_rows(f"demo:{name}?rows=60")) for name in names}
    wanted = {"facts": list(read_rows("demo:facts?rows=60&split=reference"))}
    problem = prepare_rows(
        "demo", tmp_path, train, wanted, size="0.1M", context=64, vocabulary=300, learning_rate=3e-3, workers=1,
        rows=108, even=True,
    )  # fmt: skip
    shares = online.doge(problem)
    assert shares.sum() == pytest.approx(1.0)
    assert shares.argmax() == 1
    robust = online.doremi(problem)
    assert robust.sum() == pytest.approx(1.0)
    assert (robust > 0).all()
    assert robust.std() > 1e-4

    class Setting:
        task = Task(problem.base, 3.0 * problem.base, problem.base / 4.0, 4.0 * problem.base)

        def rows(self, volumes):
            return np.round(volumes)

    setting = Setting()
    setting.problem = problem
    moved = online.ideal_rule(setting)
    assert moved.sum() == pytest.approx(problem.base.sum())
    assert moved.argmax() == 1
    assert np.abs(np.log(moved / problem.base)).max() < 2 * 0.33
