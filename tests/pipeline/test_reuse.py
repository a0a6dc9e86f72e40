"""`search --reuse`: earlier runs keep counting when data, capabilities or limits change; the old run stays as it is."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from builders import run, without_times, write_rows

from ideal_proxy.config import dump_config, parse_config
from ideal_proxy.data.demo import demo_rows
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.finished import load_run, search
from ideal_proxy.pipeline.price import calibrated
from ideal_proxy.pipeline.row_record import load_record

NAMES = ("strings", "formats", "facts")


def settings(folder, domains, capabilities, **changes):
    return {
        "name": "small",
        "domains": [{"name": name, "path": str(folder / f"{file}.jsonl")} for name, file in domains.items()],
        "capabilities": [{"name": name, "path": f"demo:{name}?rows=60&split=reference"} for name in capabilities],
        "proxy": {"size": "0.1M", "vocabulary": 300, "context": 48, "fraction": 0.3},
        "swarm": {"workers": 1},
        "verify": {"pairs": 2, "max_pairs": 2},
        "rounds": 1,
        "protect": "none",
        **changes,
    }


def state(folder):
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Rows as files, and a finished search over three domains."""
    folder = tmp_path_factory.mktemp("reuse")
    for name in (*NAMES, "lists"):
        rows = demo_rows(f"demo:{name}?rows=300")
        write_rows(folder / f"{name}.jsonl", rows)
        write_rows(folder / f"{name}_half.jsonl", rows[:150])
        write_rows(folder / f"{name}_rest.jsonl", rows[150:])
    first = settings(folder, dict(zip(NAMES, NAMES, strict=True)), NAMES[:2], swarm={"runs": 7, "workers": 1})
    search(first, folder / "old")
    return folder


@pytest.fixture(scope="module")
def changed(home):
    """A domain came, one was split and renamed, one was filtered; a capability came."""
    before = state(home / "old")
    domains = {"text/1": "strings_half", "text/2": "strings_rest", "formats": "formats", "facts": "facts_half",
               "lists": "lists"}  # fmt: skip
    new = settings(home, domains, ("strings", "formats", "lists"))
    said: list[str] = []
    from ideal_proxy.terminal import Reporter

    reporter = Reporter(quiet=True)
    reporter.on_note = said.append
    found = search(new, home / "new", reporter=reporter, reuse=[home / "old"])
    assert state(home / "old") == before
    return found, (home / "new" / "log.txt").read_text(), new


def test_only_what_is_missing_is_trained(changed, home):
    found, log, _ = changed
    roles = found.runs["role"].value_counts()
    old = pd.read_parquet(home / "old" / "runs.parquet")
    assert roles["reused"] == old["role"].isin(["design", "verify"]).sum()
    # three of the new domain, two of the split, one of the filtered, and base
    assert roles["design"] == 7
    assert "sweep" not in roles
    assert found.result["cost"]["runs"] == 1 + 7 + roles.get("verify", 0)
    assert "7 new runs and the check, where a fresh search has 18" in log
    assert "strings was split into text/1 and text/2: 300 rows stayed" in log
    assert "facts: filtered, 150 rows stayed, 150 went" in log
    assert "lists: added, 300 rows" in log
    assert f"reference rows of lists: {roles['reused']} of {roles['reused']} runs are judged on them by their" in log
    reuse = found.result["reuse"]
    assert (reuse["new_runs"], reuse["fresh_runs"], reuse["retired"]) == (7, 18, ["facts"])
    assert len(reuse["trust"]) == 1
    assert reuse["trust"][0].startswith(f"{home / 'old'} ")
    assert len(found.held_out().query("kind == 'left out'")) <= 3 * (roles["reused"] + roles["design"])
    assert reuse["runs"][0]["from"] == str(home / "old")
    assert json.loads((home / "new" / "mixture.json").read_text())["provenance"]["reuse"] == reuse


def test_earlier_runs_stand_in_the_new_volumes_with_the_same_losses(changed, home):
    found, _, _ = changed
    reused = found.runs[found.runs["role"] == "reused"]
    old = pd.read_parquet(home / "old" / "runs.parquet").set_index("run")
    for _, line in reused.iterrows():
        before = old.loc[line["run"].rpartition(":")[2]]
        assert line["rows/text/1"] + line["rows/text/2"] == pytest.approx(before["rows/strings"])
        assert line["rows/formats"] == pytest.approx(before["rows/formats"])
        assert line["rows/facts"] < before["rows/facts"]
        assert line["rows/lists"] == 0
        for name in ("strings", "formats"):
            assert line[f"search_loss/{name}"] == pytest.approx(before[f"search_loss/{name}"], rel=1e-6)
    assert np.isfinite(reused["search_loss/lists"]).all()
    assert reused["search_loss/lists"].nunique() > 3


def test_stored_weights_say_what_training_said(changed, home):
    """The weights were judged on all new rows, the old ones too: the losses must be those of the old search."""
    _, _, _ = changed
    old = pd.read_parquet(home / "old" / "runs.parquet").set_index("run")
    seen = 0
    for path in (home / "new" / "runs").glob("*/metrics.json"):
        metrics = json.loads(path.read_text())
        if metrics["spec"]["role"] == "judged":
            seen += 1
            before = old.loc[metrics["spec"]["trained"], "search_loss/strings"]
            assert metrics["reference_loss"]["search-0"] == pytest.approx(before, rel=1e-5)
    assert seen >= 9


def test_warm_start_rate_split_and_tokenizer_are_the_old_ones(changed, home):
    found, _, _ = changed
    old, new = (load_record(home / name / "rows.npz") for name in ("old", "new"))
    warm = np.concatenate(old.reserved)
    for pool in new.pools:
        assert not np.isin(pool, warm).any()  # rows of the warm start stay out of every mixture
    assert new.reserved[4].size == 0  # a new domain never enters the old warm start
    assert np.isin(new.half("search"), old.half("verify")).sum() == 0
    assert found.rate["learning_rate"] == json.loads((home / "old" / "rate.json").read_text())["learning_rate"]
    weights = [(home / name / "runs" / "warm" / "model.safetensors").read_bytes() for name in ("old", "new")]
    assert weights[0] == weights[1]
    seeds = [pd.read_parquet(home / n / "runs.parquet").query("role == 'verify'")["seed"] for n in ("old", "new")]
    assert not set(seeds[0]) & set(seeds[1])


def test_a_killed_search_goes_on_without_the_old_run(changed, home, tmp_path):
    shutil.copytree(home / "new", tmp_path / "new")
    before = without_times(tmp_path / "new" / "mixture.json")
    (tmp_path / "new" / "result.json").unlink()
    hidden = home / "hidden"
    (home / "old").rename(hidden)
    try:
        again = search(changed[2], tmp_path / "new", reuse=[home / "old"])
    finally:
        hidden.rename(home / "old")
    assert without_times(tmp_path / "new" / "mixture.json") == before
    assert again.result["reuse"] == changed[0].result["reuse"]


def test_other_limits_need_no_new_run_but_the_check(home):
    limits = settings(home, dict(zip(NAMES, NAMES, strict=True)), NAMES[:2], constraints={"max_repeat": 1.5})
    found = search(limits, home / "limits", reuse=[home / "old"])
    roles = found.runs["role"].value_counts()
    assert "design" not in roles
    assert roles["reused"] >= 9
    assert found.result["reuse"]["new_runs"] == 0
    assert "gradients none (with --reuse none are taken)" in (home / "limits" / "log.txt").read_text()
    assert all(d["repeat"] <= 1.5 + 1e-9 for d in found.result["domains"])


def test_what_was_reused_is_passed_on(changed, home):
    """A third search reuses the second alone: the first one's runs come with it, on the capability it was judged on."""
    names = {"text": "strings", "formats": "formats", "facts": "facts_half"}
    third = settings(home, names, ("lists", "strings"))
    plan = search_plan(third, home, home / "new")
    assert plan[1].startswith(f"reuse {home / 'old'}: ")
    assert any(line.startswith("text/1 and text/2 were merged into text: 300 rows stayed") for line in plan)
    assert any("lists: removed, 300 rows" in line for line in plan)
    assert "reference rows of lists, strings: judged before by all runs" in plan


def search_plan(raw, home, earlier):
    path = home / "plan.yaml"
    path.write_text(dump_config(parse_config(raw)), encoding="utf-8")
    shutil.rmtree(home / "planned", ignore_errors=True)
    answer = run("search", str(path), "--out", str(home / "planned"), "--reuse", str(earlier), "--dry-run")
    assert answer.returncode == 0, answer.stderr
    lines = answer.stderr.splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("reuse ")) :]


def test_a_run_without_weights_is_told_and_priced(home, tmp_path):
    shutil.copytree(home / "old", tmp_path / "old")
    for path in (tmp_path / "old" / "runs").glob("*/model.safetensors"):
        if path.parent.name != "warm":
            path.unlink()
    raw = settings(home, dict(zip(NAMES, NAMES, strict=True)), ("strings", "lists"))
    plan = search_plan(raw, home, tmp_path / "old")
    assert any("runs kept no weights and tell nothing of it; it is learned from the new runs" in line for line in plan)
    assert any(line.startswith("4 new runs and the check, where a fresh search has 12") for line in plan)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"proxy": {"size": "0.1M", "vocabulary": 400}}, "its proxy.vocabulary is 300 and this run file's 400"),
        ({"loss": "row"}, "its loss is token and this run file's row"),
    ],
)
def test_other_proxies_are_refused_by_name(home, change, told, tmp_path):
    raw = settings(home, dict(zip(NAMES, NAMES, strict=True)), NAMES[:2], **change)
    (tmp_path / "mix.yaml").write_text(dump_config(parse_config(raw)))
    answer = run("search", "mix.yaml", "--out", "x", "--reuse", str(home / "old"), cwd=tmp_path)
    assert answer.returncode == 1
    assert told in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_proxies_of_another_size_are_evidence_of_another_kind(home):
    """And a φ of their own; the warm start is trained anew on the same rows, the rate is the dial's."""
    proxy = {"size": "1M", "vocabulary": 300, "context": 48, "fraction": 0.1, "dtype": "float32"}
    raw = settings(home, dict(zip(NAMES, NAMES, strict=True)), NAMES[:2], proxy=proxy, swarm={"runs": 4, "workers": 1})
    before = state(home / "old")
    found = search(raw, home / "larger", reuse=[home / "old"])
    assert state(home / "old") == before
    kind = f"0.1M proxies of {home / 'old'}"
    told = found.model.fidelity_[kind]
    old = load_run(home / "old")
    assert (told["learned"], told["same_level"], told["runs"]) == (True, False, (found.runs["from"] == kind).sum())
    assert found.rate["learning_rate"] == pytest.approx(old.rate["learning_rate"] * 2e-3 / 6e-3)
    assert (found.plan["fraction"], found.plan["warms"]) == (0.1, True)
    assert found.result["reuse"]["trust"][0].startswith(f"{kind} ")
    assert (found.runs["role"] == "warm").sum() == 1
    for name in ("reserved_0", "search-0"):
        records = [load_record(folder / "rows.npz") for folder in (home / "old", home / "larger")]
        if name == "reserved_0":
            assert all((a == b).all() for a, b in zip(*(r.reserved for r in records), strict=True))
        else:
            assert all((a == b).all() for a, b in zip(*(r.reference_keys for r in records), strict=True))
    assert "expected to show 1.2 ± 0.4 of every change" in (home / "larger" / "log.txt").read_text()
    log = (home / "larger" / "log.txt").read_text()
    assert "inherited: tokenizer, the warm start's rows" in log
    assert "by the run that is reused" in log


def test_other_data_are_refused(home, tmp_path):
    raw = settings(home, {"a": "lists_half", "b": "lists_rest"}, NAMES[:2])
    (tmp_path / "mix.yaml").write_text(dump_config(parse_config(raw)))
    answer = run("search", "mix.yaml", "--out", "x", "--reuse", str(home / "old"), cwd=tmp_path)
    assert answer.returncode == 1
    assert "only 0% of the rows that its runs drew are in this run file's domains" in answer.stderr
    answer = run("search", "mix.yaml", "--out", "y", "--reuse", str(tmp_path), cwd=tmp_path)
    assert "no run directory; give the folder" in answer.stderr


@pytest.mark.parametrize("name", ["rows.npz", "runs/*/metrics.json", "config.yaml"])
def test_an_earlier_search_that_is_damaged_is_not_reused(name, home, tmp_path):
    shutil.copytree(home / "old", tmp_path / "old")
    path = sorted((tmp_path / "old").glob(name))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    raw = settings(home, dict(zip(NAMES, NAMES, strict=True)), NAMES[:2])
    (tmp_path / "mix.yaml").write_text(dump_config(parse_config(raw)))
    command = ("search", "mix.yaml", "--dry-run", "--out", "x", "--reuse", str(tmp_path / "old"))
    answer = run(*command, cwd=tmp_path)
    assert answer.returncode in {1, 2}
    assert name.split("/")[-1] in answer.stderr


def priced(home, *more):
    for name in ("strings", "lists"):
        write_rows(home / f"more_{name}.jsonl", demo_rows(f"demo:{name}?seed=5&rows=200"))
    sets = [word for name in ("strings", "lists") for word in ("--add", str(home / f"more_{name}.jsonl"))]
    answer = run("price", str(home / "old"), *sets[: 2 if more else 4], "--rows", "30", "--json", *more)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_gradients_price_a_set_before_it_is_trained_on(home):
    strings, lists = priced(home)
    assert (strings["name"], strings["rows"], strings["method"]) == ("more_strings", 30, "gradients")
    for found in (strings, lists):
        for change in found["changes"].values():
            assert change["lower"] < change["value"] < change["upper"]
        assert -1 <= found["quality"] <= 1
    # rows of its own kind help a capability more than rows of another kind
    assert strings["changes"]["strings"]["value"] < lists["changes"]["strings"]["value"]


def test_a_few_runs_price_a_set_beside_the_earlier_ones(home):
    before = state(home / "old")
    (strings,) = priced(home, "--runs", "2", "--out", str(home / "price"))
    assert state(home / "old") == before
    made = [json.loads(p.read_text())["spec"]["role"] for p in (home / "price" / "runs").glob("*/metrics.json")]
    assert sorted(made) == ["design", "design", "warm"]
    change = strings["changes"]["strings"]
    assert change["lower"] < change["value"] < change["upper"] < 0.2
    assert strings["quality"] is None


def test_scale_and_error_of_gradients_are_learned_from_known_domains():
    rng = np.random.default_rng(2)
    known = rng.normal(0.0, [[0.01], [0.1], [0.03]], (3, 40))
    for noise in (0.0, 0.3):
        told = (known + noise * known.std(axis=1, keepdims=True) * rng.normal(size=known.shape)) / 0.1
        scale, left = calibrated(told, known)
        assert scale[0] == pytest.approx(0.1 / (1 + noise**2), rel=0.05)
        expected = noise / np.sqrt(1 + noise**2)
        np.testing.assert_allclose(left / known.std(axis=1), expected, atol=0.06)
    with pytest.raises(UserError, match="give --runs 2"):
        calibrated(told[:, :2], known[:, :2])
