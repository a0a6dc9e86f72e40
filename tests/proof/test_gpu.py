"""What a GPU's steps leave behind: answers word for word, and a page that says what did not end well."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from builders import ROOT, write_rows
from pretrained_folder import pretrained_folder

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks/proof"))

import gpu

from ideal_proxy.data.rows import read_rows


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A model with its tokenizer, and what it answers to some questions, one at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pretrained_folder(tmp_path_factory.mktemp("model"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    told = {}
    for prompt in (row.prompt for row in read_rows("demo:facts?rows=9&seed=7")):
        ids = tokenizer(f"<|user|>\n{prompt}<|end|><|assistant|>\n", return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            made = model.generate(ids["input_ids"], max_new_tokens=12, do_sample=False)[0]
        told[prompt] = tokenizer.decode(made[ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return model, tokenizer, {prompt: answer for prompt, answer in told.items() if len(answer) > 3}


def share_right(folder, answers, said) -> dict[str, float]:
    model, tokenizer, _ = answers
    path = write_rows(folder / "rows.jsonl", [{"prompt": p, "completion": c} for p, c in said.items()])
    return gpu.exact_match(model, tokenizer, {"facts": list(read_rows(path))}, 12, False)


def test_an_answer_is_right_only_word_for_word_to_its_end(answers, tmp_path):
    told = answers[2]
    assert len(told) >= 6
    assert share_right(tmp_path, answers, told) == {"facts": 1.0}
    assert share_right(tmp_path, answers, {p: f" {a}\n" for p, a in told.items()}) == {"facts": 1.0}  # but for blanks
    for change in (lambda a: f"{a} more", lambda a: a[:-1], lambda a: a[:2] + "§" + a[3:]):
        assert share_right(tmp_path, answers, {p: change(a) for p, a in told.items()}) == {"facts": 0.0}
    some = {p: a if number < 2 else f"{a}." for number, (p, a) in enumerate(told.items())}
    assert share_right(tmp_path, answers, some) == {"facts": pytest.approx(2 / len(told))}


def page_of(folder) -> dict[str, str]:
    gpu.show(folder, folder / "gpu.md")
    lines = [line for line in (folder / "gpu.md").read_text().splitlines() if line.startswith("| ")][1:]
    return dict(line.strip("| ").split(" | ", 1) for line in lines)


def test_a_step_that_failed_or_ran_out_of_time_is_not_called_not_run(tmp_path):
    (tmp_path / "gpu_correctness.failed").write_text("1\n")
    (tmp_path / "gpu_skills.failed").write_text("124\n")
    page = page_of(tmp_path)
    assert page["packed = alone, bf16, resume"] == "**failed** (exit 1)"
    assert page["a search of `skills` from run file to verdict"] == "**out of time**"
    assert page["one proxy of 1M, tokens a second"] == "not run: no GPU was at hand"
    assert page["SmolLM2-135M, base: mean exact match over 18 capabilities"] == "not run: no GPU was at hand"


def test_what_a_step_had_done_before_it_failed_is_shown(tmp_path):
    one = {"1M": {"tokens_per_second": 2e6, "share_of_peak": 0.0123}}
    runs = [{"arm": "base", "exact": {"a": 0.1, "b": 0.3}}, {"arm": "base", "exact": {"a": 0.2, "b": 0.4}}]
    for step, told in (("speed", {"one": one, "workers": {}}), ("smollm2", {"runs": runs}), ("skills", {"failed": 3})):
        (tmp_path / f"gpu_{step}.json").write_text(json.dumps({"step": step, "device": "x", "smoke": True} | told))
        (tmp_path / f"gpu_{step}.failed").write_text("124\n")
    page = page_of(tmp_path)
    assert page["one proxy of 1M, tokens a second"] == "2,000,000, 1.23 % of peak"
    assert page["one proxy of 10M, tokens a second"] == "**out of time**"
    assert page["4 workers of 1M proxies on one card, tokens a second"] == "**out of time**"
    assert page["SmolLM2-135M, base: mean exact match over 18 capabilities"] == "25.00 % (seeds: 20.00, 30.00)"
    assert page["SmolLM2-135M, proposal: mean exact match over 18 capabilities"] == "**out of time**"
    assert page["a search of `skills` from run file to verdict"] == "**failed** (exit 3)"
    assert "the figures mean nothing" in (tmp_path / "gpu.md").read_text()
