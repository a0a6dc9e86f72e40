"""The main job, small: a real search end to end, killed and resumed, and a null that gains nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from accelerate import tracking
from builders import environment, run, search_command, small_search, without_times, write_small_search
from forked import Forked

from ideal_proxy.config import dump_config, load_config, parse_config
from ideal_proxy.errors import UserError
from ideal_proxy.pipeline.claim import claim
from ideal_proxy.pipeline.finished import load_run, search
from ideal_proxy.pipeline.outer_loop import run_search
from ideal_proxy.pipeline.run_table import roles_when_trained
from ideal_proxy.pipeline.stage import runs_by_stage
from ideal_proxy.pipeline.status import finished_runs, read_status
from ideal_proxy.store import lock, lock_holder, mark_again
from ideal_proxy.terminal import Reporter


@pytest.fixture(scope="module")
def finished(whole):
    stdout, stderr = json.loads((whole / "said.json").read_text())
    return whole, SimpleNamespace(stdout=stdout, stderr=stderr)


def test_a_poor_base_is_improved_and_the_terminal_says_so(finished):
    folder, answer = finished
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["verdict"]["answer"] == "improves"
    assert result["verdict"]["gain"]["lower"] > 0
    strings = result["domains"][0]
    assert strings["proposal_rows"] > 2 * strings["base_rows"]
    assert "Verdict: improves" in answer.stdout
    assert all(len(line) <= 80 or str(folder) in line for line in answer.stdout.splitlines())  # but for long paths
    assert "Warning:" not in answer.stderr
    tokens, base = (sum(d[key] for d in result["domains"]) for key in ("tokens", "base_tokens"))
    added = sum(capability["adds"] for capability in result["capabilities"])
    assert added == pytest.approx(result["verdict"]["gain"]["value"], abs=0.01)
    assert "The gain is made of: " in answer.stdout
    assert tokens == pytest.approx(base, rel=0.01)  # the budget is kept: exactly in mean tokens a row, nearly in drawn


def test_the_files_hold_together(finished):
    folder, _ = finished
    mixture = json.loads((folder / "run" / "mixture.json").read_text())
    result = json.loads((folder / "run" / "result.json").read_text())
    assert [d["rows"] for d in mixture["domains"]] == [d["proposal_rows"] for d in result["domains"]]
    assert mixture["verdict"] == "improves"
    for key in ("tokens", "share", "repeat"):
        assert [d[key] for d in mixture["domains"]] == [d[key] for d in result["domains"]]
    frame = pd.read_parquet(folder / "run" / "runs.parquet")
    assert set(frame["role"]) == {"warm", "sweep", "design", "verify"}
    seen = frame.loc[frame["role"] == "design", [f"verify_loss/{n}" for n in ("strings", "formats")]]
    assert seen.isna().to_numpy().all()
    verify = frame[frame["role"] == "verify"]
    assert len(verify) == 6
    assert not set(verify["seed"]) & set(frame.loc[frame["role"] == "design", "seed"])
    # The fit knows runs of base by what a proxy draws of it: whole rows.
    drawn = frame.filter(like="rows/").eq(verify.filter(like="rows/").iloc[0])
    seen = json.loads((folder / "run" / "fit.json").read_text())["at_base_"]
    assert seen["runs"] == (drawn.all(axis=1) & (frame["role"] == "design")).sum() > 0
    # The verified numbers can be recomputed from the runs.
    base = verify[verify["rows/strings"] == verify["rows/strings"].min()]["verify_loss/strings"].mean()
    assert mixture["capabilities"][0]["verified_base_loss"] == pytest.approx(base, rel=1e-9)


def test_plan_status_and_page_count_the_runs_alike(finished):
    """The sweep's runs at the chosen rate are the swarm's too: they count where they were trained."""
    run = finished[0] / "run"
    planned = {stage["name"]: stage["runs"] for stage in json.loads((run / "status.json").read_text())["plan"]}
    done = runs_by_stage(entry["spec"]["role"] for entry in finished_runs(run))
    shown = runs_by_stage(roles_when_trained(load_run(run).runs))
    assert done == shown
    assert done["learning rate"] >= planned["learning rate"] > 0
    assert planned["swarm"] <= done["swarm"] <= planned["swarm"] + planned.get("more rounds", 0)
    assert set(load_run(run).runs["role"].value_counts().items()) != set(done.items())


def test_show_prints_the_same_again_and_search_does_not_train_again(finished):
    folder, answer = finished
    trained = {path: path.stat().st_mtime_ns for path in (folder / "run" / "runs").rglob("*")}
    for arguments in (["show", "run"], ["search", "mix.yaml", "--out", "run"]):
        again = run(*arguments, cwd=folder)
        assert again.returncode == 0
        assert again.stdout.splitlines()[:10] == answer.stdout.splitlines()[:10]
    assert {path: path.stat().st_mtime_ns for path in (folder / "run" / "runs").rglob("*")} == trained != {}


def test_apply_writes_the_exact_rows(finished, tmp_path):
    folder, _ = finished
    answer = run("apply", "run/mixture.json", "--out", str(tmp_path / "rows"), "--json", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    written = json.loads(answer.stdout)
    mixture = json.loads((folder / "run" / "mixture.json").read_text())
    lines = [line for name in written["files"] for line in (tmp_path / "rows" / name).read_text().splitlines()]
    assert len(lines) == sum(d["rows"] for d in mixture["domains"])
    upper = sum(json.loads(line)["instruction"].startswith(("upper", "first", "twice", "spell")) for line in lines)
    assert upper == mixture["domains"][0]["rows"]


def test_transfer_predicts_the_proposal_as_the_search_did(finished, tmp_path):
    folder, _ = finished
    answer = run(
        "transfer", "run/mixture.json", "--mode", "repeat", "--out", str(tmp_path / "full.json"), "--json", cwd=folder
    )
    assert answer.returncode == 0, answer.stderr
    result, moved = json.loads((folder / "run" / "result.json").read_text()), json.loads(answer.stdout)
    assert [d["rows"] for d in moved["domains"]] == [d["proposal_rows"] for d in result["domains"]]
    drawn = [d["tokens"] / d["rows"] for d in moved["domains"]]
    assert list(moved["provenance"]["tokens_per_row"].values()) == pytest.approx(drawn, rel=0.02)
    for shown, searched in zip(moved["capabilities"], result["capabilities"], strict=True):
        assert shown["predicted_loss"] / shown["base_loss"] == pytest.approx(searched["predicted"]["value"], abs=2e-4)


def test_a_tracker_may_break_and_hears_everything(finished, tmp_path):
    """Of a copy of the finished search that lost its result."""
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    told: list[dict] = []

    def broken(event):
        told.append(event)
        raise RuntimeError("a tracker may do anything")

    run = search(folder / "mix.yaml", tmp_path / "run", on_event=broken)
    assert [event["event"] for event in told] == ["round fitted", "verdict", "search finished"]
    assert told[1]["gain"] == run.result["verdict"]["gain"]["value"]
    assert told[2]["adopted"]
    assert told[2]["rows"] == {d["name"]: d["proposal_rows"] for d in run.result["domains"]}


def test_a_tracking_service_hears_losses_gain_and_verdict(finished, tmp_path, monkeypatch):
    """Of a copy of the finished search that lost its result and one run."""
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    complete = [path.parent for path in sorted((tmp_path / "run" / "runs").glob("*/complete"))]
    roles = [json.loads((path / "metrics.json").read_text())["spec"]["role"] for path in complete]
    lost = complete[roles.index("design")]
    (lost / "complete").unlink()
    logged: list[tuple[int, dict]] = []

    class Service:
        def __init__(self, run_name, **options):
            assert options == {"name": "small", "dir": str(tmp_path / "run")}

        def start(self):
            pass

        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            logged.append((-1, {}))

    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Service)
    result = run_search(load_config(folder / "mix.yaml"), tmp_path / "run", Reporter(quiet=True), track=["wandb"])
    metrics = json.loads((lost / "metrics.json").read_text())
    assert {step for step, _ in logged[:-1]} == {len(complete)}
    assert logged[-1] == (-1, {})
    values = [values for _, values in logged]
    assert values[0]["design/loss/strings"] == pytest.approx(metrics["reference_loss"]["search-0"], rel=1e-9)
    (fitted,) = (found for found in values if "round/predicted_gain" in found)
    assert fitted["round/proposal/strings"] == result["domains"][0]["proposal_rows"]
    (verdict,) = (found for found in values if "verdict/gain" in found)
    assert verdict["verdict/gain"] == result["verdict"]["gain"]["value"]
    assert verdict["verdict/answer"] == result["verdict"]["answer"] == "improves"
    assert values[-2]["search/adopted"] == 1.0


def test_killed_twice_and_resumed_it_ends_with_the_same_mixture(finished, tmp_path):
    """Once in the middle of the sweep, once in the middle of the swarm; by the run file that the first search kept."""
    folder, _ = finished
    mine = tmp_path / "mine"
    mine.mkdir()
    kept = (folder / "run" / "config.yaml").read_text()
    (mine / "mix.yaml").write_text(kept.replace("workers: 2", "workers: 1"))  # which changes no number
    assert "workers: 2" in kept
    finished_run, folder = folder / "run", mine
    runs = folder / "killed" / "runs"
    rng = random.Random(5)
    for complete, stage in ((rng.randint(2, 7), "learning rate"), (rng.randint(12, 18), "round 1: swarm")):
        process = Forked(
            search_command(folder, "killed"), env=environment(), cwd=folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        ours = f"process {process.pid} on"
        while process.poll() is None and (
            len(list(runs.glob("*/complete"))) < complete or not (lock_holder(folder / "killed") or "").startswith(ours)
        ):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGSTOP)  # it goes no further while it is looked at
        watched = read_status(folder / "killed")
        again = run("search", "mix.yaml", "--out", "killed", cwd=folder)
        assert (again.returncode, process.poll()) == (1, None)
        assert f"is in use by process {process.pid} on" in again.stderr
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert (watched["state"], watched["stage"]) == ("running", stage)
        assert sum(watched["complete"].values()) >= complete
        assert watched["seconds_left"] > 0
        stopped = read_status(folder / "killed")
        assert (stopped["state"], stopped["ended"]) == ("stopped", None)
    assert not (folder / "killed" / "mixture.json").exists()
    done = run("search", "mix.yaml", "--out", "killed", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert without_times(folder / "killed" / "mixture.json") == without_times(finished_run / "mixture.json")


def bend(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_flipped_bytes_of_what_a_finished_search_rests_on_are_noticed_and_mended(finished, tmp_path):
    folder, _ = finished
    out, before = tmp_path / "run", without_times(folder / "run" / "mixture.json")
    shutil.copytree(folder / "run", out)
    shutil.copy(folder / "mix.yaml", tmp_path)
    again = ("search", "mix.yaml", "--out", "run")
    for name in ("config.yaml", "rows.npz", "provenance.json"):
        sound = (out / name).read_bytes()
        bend(out / name)
        answer = run("show", "run", cwd=tmp_path)
        assert (answer.returncode, f"run/{name} is damaged" in answer.stderr) == (1, True), name
        if name == "config.yaml":  # nothing need be made anew for it
            assert "made anew" not in run(*again, cwd=tmp_path).stderr
            assert (out / name).read_bytes() == sound
    bend(out / "prepared" / "domain-1" / "ids.npy")
    answer = run(*again, cwd=tmp_path)  # both at once, and what was prepared
    assert "run/rows.npz is damaged" in answer.stderr or "provenance.json is damaged" in answer.stderr
    assert "ids.npy is damaged; prepared is made anew" in answer.stderr
    assert without_times(out / "mixture.json") == before
    assert (out / "rows.npz").read_bytes() == (folder / "run" / "rows.npz").read_bytes()
    bend(out / "prepared" / "search-0" / "ids.npy")
    bend(out / "status.json")  # nothing rests on it
    result = (out / "result.json").read_bytes()
    assert "ids.npy is damaged; prepared is made anew" in run(*again, cwd=tmp_path).stderr
    assert run("status", "run", cwd=tmp_path).returncode == 0
    assert (out / "result.json").read_bytes() == result, "shown, not made anew"
    for name in ("ids.npy", "meta.json"):
        assert (out / "prepared/search-0" / name).read_bytes() == (folder / "run/prepared/search-0" / name).read_bytes()


def test_prepared_data_are_not_made_anew_from_other_rows(finished, tmp_path):
    folder, _ = finished
    out = tmp_path / "run"
    shutil.copytree(folder / "run", out)
    mixture = json.loads((out / "mixture.json").read_text())
    mixture["domains"][1]["fingerprint"] = "0" * 64
    (out / "mixture.json").write_text(json.dumps(mixture))
    mark_again(out / "mixture.json")
    shutil.copy(folder / "mix.yaml", tmp_path)
    bend(out / "prepared" / "facts.json")
    for _ in range(2):
        answer = run("search", "mix.yaml", "--out", "run", cwd=tmp_path)
        assert answer.returncode == 1
        assert "the rows of formats are no longer those of the search" in answer.stderr


def test_an_edited_run_file_in_a_finished_search_is_taken_where_it_asks_for_the_same(finished, tmp_path):
    folder, _ = finished
    out = tmp_path / "run"
    shutil.copytree(folder / "run", out)
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("max_pairs: 3", "max_pairs: 3  # or 5?"))
    answer = run("search", str(out / "config.yaml"), "--out", str(out))
    assert (answer.returncode, "made anew" in answer.stderr) == (0, False)
    assert run("show", str(out)).returncode == 0
    (out / "config.yaml").write_text(text.replace("seed: 0", "seed: 1", 1))
    answer = run("search", str(folder / "mix.yaml"), "--out", str(out))
    assert answer.returncode == 0
    assert (out / "config.yaml").read_text() == text, "put back: mix.yaml is what it was made of"


LADDER = {"proxy": {"vocabulary": 300, "context": 48}, "swarm": {"sizes": ["0.1M", "1M"], "runs": [8, 5]}}
OWN = {"proxy": {"command": "train {run}", "model": "somebody/model", "fraction": 0.2, "timeout_seconds": 60}}


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        (LADDER, {**LADDER, "swarm": {"sizes": ["0.1M", "3M"], "runs": [8, 5]}}, True),
        (LADDER, {**LADDER, "swarm": {"sizes": ["0.1M", "1M"], "runs": [9, 5]}}, True),
        (LADDER, {"swarm": {"runs": 5}}, True),
        (LADDER, {**LADDER, "swarm": {**LADDER["swarm"], "workers": 3, "max_hours": 2}}, False),
        (OWN, {"proxy": {**OWN["proxy"], "command": "train --faster {run}"}}, True),
        (OWN, {"proxy": {"model": "somebody/model", "fraction": 0.2}}, True),
        (OWN, {"proxy": {**OWN["proxy"], "timeout_seconds": 90}}, False),
    ],
)
def test_a_ladder_or_a_trainer_that_changed_is_another_search(before, after, refused, tmp_path):
    first, second = (parse_config(small_search(**{"proxy": {}, "swarm": {}, **changes})) for changes in (before, after))
    with lock(tmp_path / "run"):
        claim(first, tmp_path / "run")
        (tmp_path / "run" / "runs").mkdir()
        if not refused:
            return claim(second, tmp_path / "run")
        with pytest.raises(UserError, match=r"config\.yaml differs"):
            claim(second, tmp_path / "run")
    return None


def test_a_folder_of_another_run_says_which_keys_differ(tmp_path):
    def refusal(changes):
        with pytest.raises(UserError, match="holds another run") as refused:
            claim(parse_config(given | changes), tmp_path)
        return re.search(r"config\.yaml differs in ([^)]*)\)", str(refused.value))[1]

    given = small_search()
    claim(parse_config(given), tmp_path)
    (tmp_path / "runs").mkdir()
    runs = {"swarm": {**given.get("swarm", {}), "runs": 77}}
    assert refusal(runs) == "swarm.runs"
    pinned = [{**given["domains"][0], "pinned": True}, *given["domains"][1:]]
    assert refusal({**runs, "domains": pinned}) == "domains.0.pinned, swarm.runs"
    assert refusal({"domains": [*given["domains"], {"name": "more", "path": "demo:more"}]}) == "domains"
    assert refusal({**runs, "domains": pinned, "seed": 5, "loss": "row"}).endswith(" and 1 more")


def test_changed_data_is_refused_on_resume(tmp_path):
    for name in ("a", "b"):
        rows = "".join(json.dumps({"instruction": f"{name}{n}", "output": f"o {n}"}) + "\n" for n in range(40))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    config = parse_config(
        {
            "domains": [{"name": n, "path": f"{n}.jsonl"} for n in ("a", "b")],
            "capabilities": [{"name": "a", "path": "demo:facts?rows=20&split=reference"}],
            "proxy": {"size": "0.1M", "vocabulary": 300, "context": 32},
        },
        folder=tmp_path,
    )
    (tmp_path / "mix.yaml").write_text(dump_config(config))
    plan = ["search", "mix.yaml", "--out", "run", "--dry-run"]
    assert run(*plan, cwd=tmp_path).returncode == 0
    (tmp_path / "b.jsonl").write_text(rows.replace("o 7", "o seven"))
    assert run(*plan, cwd=tmp_path).returncode == 0, "a plan alone is made again"
    (tmp_path / "run" / "dry-run").unlink()  # as a search that was begun leaves it
    (tmp_path / "b.jsonl").write_text(rows)
    answer = run(*plan, cwd=tmp_path)
    assert answer.returncode == 1
    assert "b.jsonl changed since" in answer.stderr


def test_a_budget_outside_the_explored_region_is_refused_before_anything_is_trained(tmp_path):
    write_small_search(tmp_path, budget={"mode": "at_most", "unit": "rows", "total": 40})
    answer = run("search", "mix.yaml", "--out", "run", cwd=tmp_path)
    assert answer.returncode == 1
    assert "No mixture can satisfy" in answer.stderr
    assert "40 rows" in answer.stderr.replace("\n", " ")
    assert not list((tmp_path / "run" / "runs").glob("*/complete"))
    assert "Traceback" not in answer.stderr


def test_a_search_that_was_refused_before_training_leaves_its_folder_free(tmp_path):
    folder = tmp_path / "run"
    for changes in ({"swarm": {"runs": 8, "workers": 1, "max_hours": 1e-4}}, {"seed": 3, "swarm": {"max_hours": 1e-4}}):
        with pytest.raises(UserError, match="is too little"):
            run_search(parse_config(small_search(**changes)), folder, Reporter(quiet=True))
    assert json.loads((folder / "provenance.json").read_text())["command"]
    assert load_config(folder / "config.yaml").seed == 3, "the second is another search, and was not refused for that"
