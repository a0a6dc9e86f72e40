"""A ladder: small proxies and few larger ones in one fit; the larger size is predicted and checked."""

from __future__ import annotations

import json
import shutil

import pytest
from builders import config_of, interrupted, small_search, without_times
from pretrained_folder import NAMES, pretrained_folder

from ideal_proxy.config import dump_config, load_config, parse_config
from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.pipeline.earlier_runs import read_packages
from ideal_proxy.pipeline.finished import search
from ideal_proxy.pipeline.outer_loop import plan_search
from ideal_proxy.pipeline.overrides import override
from ideal_proxy.pipeline.plan import read_plan
from ideal_proxy.pipeline.status import read_status
from ideal_proxy.report.plan_text import plan_tables
from ideal_proxy.report.text import result_tables
from ideal_proxy.sections import size_name
from ideal_proxy.swarm.context import load_result
from ideal_proxy.swarm.scheduler import ZERO_RUN
from ideal_proxy.terminal import Reporter


def ladder(**changes):
    """Give a run file of two sizes whose search takes seconds."""
    settings = small_search(protect="none")
    domains = [{**domain, "path": domain["path"].replace("900", "300")} for domain in settings["domains"]]
    proxy = {"vocabulary": 300, "context": 48, "fraction": 0.12, "batch_rows": 16, "dtype": "float32"}
    return {
        **settings,
        "domains": domains,
        "proxy": proxy,
        "swarm": {"sizes": ["0.1M", "1M"], "runs": [8, 5], "workers": 1},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return search(ladder(), tmp_path_factory.mktemp("ladder") / "run")


def test_both_sizes_are_in_the_fit_and_the_larger_is_checked(finished):
    told = finished.result["ladder"]
    assert (told["lower"], told["last"]) == ({"0.1M proxies": 8}, "1M")
    assert told["trust"][0].startswith("0.1M proxies ")
    assert "1M proxies show" in told["trust"][0]
    kind = finished.model.fidelity_["0.1M proxies"]
    assert (kind["runs"], kind["learned"], kind["same_level"]) == (8, True, False)
    roles = finished.runs["role"].value_counts()
    assert (roles["reused"], roles["design"], roles["verify"]) == (8, 5, 4)
    small = finished.runs[finished.runs["from"] == "0.1M proxies"]
    assert len(small) == 8
    assert finished.result["cost"]["runs"] == told["cost"]["runs"] + 1 + 5 + 4
    assert (told["cost"]["runs"] - (1 + 9 + 8 - 3)) in (0, 3, 6, 9)  # warm start, sweep (it may go on), swarm
    assert finished.rate["chosen"] == "scaled from what 0.1M proxies chose"
    assert set(finished.held_out().query("kind == 'left out'")["run"]) == set(
        finished.runs.query("role == 'design'")["run"]
    )
    assert finished.mixture.provenance["ladder"] == told
    # The prediction is of the larger size: what it says of the runs there is what they lost.
    design = finished.runs.query("role == 'design'")
    predicted = finished._predict(design)
    assert predicted == pytest.approx(finished.losses(design), rel=0.1)


def test_stopped_on_the_lower_size_it_ends_with_the_same_numbers(finished, tmp_path):
    """And its status names the stage, stopped as well as running."""
    folder = interrupted(finished.folder, tmp_path / "run", finished.result["ladder"]["cost"]["runs"] - 1)
    seen = []

    def stop(event):
        if event["event"] == "run finished":
            raise KeyboardInterrupt

    def look(event):
        if event["event"] == "run finished":
            seen.append(read_status(folder))

    with pytest.raises(KeyboardInterrupt):
        search(ladder(), folder, on_event=stop)
    seen.append(read_status(folder))
    search(ladder(), folder, on_event=look)
    for number, state, stage in ((0, "stopped", "lower sizes"), (3, "running", "round 1: swarm")):
        assert (seen[number]["state"], seen[number]["stage"]) == (state, stage)
        assert seen[number]["seconds_left"] > 0
    assert without_times(folder / "mixture.json") == without_times(finished.folder / "mixture.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swarm": {"sizes": ["1M", "0.1M"]}}, "a ladder has two or more of 0.1M, 1M, 3M, 10M, rising"),
        ({"swarm": {"sizes": ["1M"]}}, "a ladder has two or more"),
        ({"swarm": {"sizes": ["0.1M", "1M"], "runs": [9, 8, 7]}}, "runs lists 3 and sizes 2"),
        ({"swarm": {"runs": [9, 8]}}, "a list of runs is for a ladder"),
        ({"swarm": {"sizes": ["0.1M", "1M"], "runs": [0, 5]}}, "runs lists 0; every size needs a whole number of 4"),
        ({"swarm": {"sizes": ["0.1M", "1M"]}, "proxy": {"size": "3M"}}, "sizes ends with 1M and the proxies are 3M"),
        ({"swarm": {"sizes": ["0.1M", "1M"]}, "proxy": {"model": "x"}}, "sizes ends with 1M and the proxies are x"),
        ({"swarm": {"sizes": ["0.1M", "org/model"]}}, "rising, or of pretrained models of one family"),
        ({"swarm": {"sizes": ["org/model", "0.1M"]}}, "rising, or of pretrained models of one family"),
        ({"swarm": {"sizes": ["org/model"]}}, "a ladder has two or more"),
        ({"swarm": {"sizes": ["", "org/model"]}}, "swarm.sizes"),
        ({"swarm": {"sizes": ["a/M-1b", "b/m-1b"]}}, "names a/M-1b and b/m-1b, which a table could not tell apart"),
        (
            {"swarm": {"sizes": ["a", "b"]}, "proxy": {"model": "b", "command": "t {data}"}},
            "either a ladder .* or proxy.command",
        ),
        ({"verify": {"larger_size": "3M"}}, r"larger_size is a ladder today: give swarm: \{sizes: \[SMALLER, 3M\]\}"),
    ],
)  # fmt: skip
def test_ladders_that_are_none_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        config_of(("a", "b"), ("a",), **changes)


def test_a_ladder_is_written_as_it_was_read(tmp_path):
    import yaml

    config = parse_config(ladder())
    assert (config.proxy.size, config.swarm.runs, config.swarm.lower_runs) == ("1M", 5, (8,))
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    old = yaml.safe_load(dump_config(parse_config(small_search())))
    old["verify"]["larger_size"] = None  # as earlier versions wrote it
    assert parse_config(old) == parse_config(small_search())


@pytest.mark.slow
def test_a_ladder_goes_on_from_an_earlier_one(finished, tmp_path):
    """`--reuse` and `sizes` together: earlier runs of both sizes, new ones of both, each as what they are."""
    more = ladder(swarm={"sizes": ["0.1M", "1M"], "runs": [4, 4], "workers": 1})
    found = search(more, tmp_path / "next", reuse=[finished.folder])
    earlier = f"0.1M proxies of {finished.folder}"
    assert {name: kind["runs"] for name, kind in found.model.fidelity_.items()} == {earlier: 8, "0.1M proxies": 4}
    assert {entry["runs"] for entry in found.result["reuse"]["runs"]} >= {8}
    origins = found.runs[found.runs["role"] == "reused"]["from"].value_counts()
    assert (origins[earlier], origins["0.1M proxies"], origins[str(finished.folder)]) == (8, 4, 5 + 4)
    assert (found.runs["role"] == "design").sum() == 4
    assert found.result["ladder"]["lower"] == {"0.1M proxies": 4}
    assert len(found.result["reuse"]["trust"]) == len(found.result["ladder"]["trust"]) == 1


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Two pretrained models of one tokenizer, the larger one with more weights and more reading behind it."""
    place = tmp_path_factory.mktemp("family")
    for name, layers, tokens in (("tiny-2", 0, 1_500), ("tiny-8", 8, 6_000)):
        pretrained_folder(place / name, layers=layers, steps_tokens=tokens)
    return place


def of_family(family, **proxy):
    """Give a run file whose ladder is of pretrained models, in folders that are named from the run file's own."""
    settings = small_search(protect="none", gradients="none", domains=[
        {"name": name, "path": f"demo:{name}?rows=300", "base": "20%" if name == "strings" else "100%"}
        for name in NAMES
    ])  # fmt: skip
    proxy = {"context": 48, "fraction": 0.25, "dtype": "float32", **proxy}
    return {**settings, "proxy": proxy, "swarm": {"sizes": ["tiny-2", "tiny-8"], "runs": [8, 4], "workers": 1}}


def test_a_ladder_of_pretrained_models(family, tmp_path):
    """Both are trained on the same tokens, each from its own weights, and the larger one is predicted and checked."""
    pytest.importorskip("peft", reason="LoRA needs peft")
    (tmp_path / "mix.yaml").write_text(json.dumps(of_family(family, lora_rank=4, learning_rate=2e-3)), encoding="utf-8")
    for name in ("tiny-2", "tiny-8"):
        (tmp_path / name).symlink_to(family / name)
    found = search(tmp_path / "mix.yaml", tmp_path / "run")
    small = str((family / "tiny-2").resolve())
    told = found.result["ladder"]
    assert (told["lower"], told["last"]) == ({"tiny-2 proxies": 8}, "tiny-8")
    kind = found.model.fidelity_["tiny-2 proxies"]
    assert (kind["runs"], kind["same_level"]) == (8, False)
    roles = found.runs["role"].value_counts()
    assert (roles["reused"], roles["design"], roles["verify"]) == (8, 4, 4)
    # Each starts from weights of its own: untrained, the larger one loses less.
    starts = [load_result(place, ZERO_RUN) for place in (found.folder / "lower" / "tiny-2", found.folder)]
    small, large = (sum(losses.loss_sum.sum() for losses in run.losses.values()) for run in starts)
    assert large < 0.95 * small
    plan = read_plan(found.folder / "plan.json")
    assert plan.lower[0].size == str((family / "tiny-2").resolve())
    assert plan.lower[0].parameters < plan.parameters / 1.5
    assert plan.lower[0].trainable_parameters < plan.trainable_parameters / 1.5
    assert "8 runs of tiny-2 proxies below those of tiny-8" in result_tables(found.result, found.folder)
    assert load_config(found.folder / "config.yaml").swarm.sizes == tuple(
        str((family / name).resolve()) for name in ("tiny-2", "tiny-8")
    )
    # The next search reads what it left: runs of each model as what they are.
    told = [(package.proxies["model"], len(package.runs)) for package in read_packages(found.folder)]
    assert told == [(str((family / "tiny-8").resolve()), 8), (plan.lower[0].size, 8)]


@pytest.mark.parametrize(("rank", "rates"), [(None, 3), (4, 1)])
def test_a_rate_of_low_rank_is_that_of_the_next_size_and_in_full_every_size_sweeps(family, tmp_path, rank, rates):
    config = parse_config(of_family(family, lora_rank=rank), folder=family)
    plan = plan_search(config, tmp_path / "run", Reporter(quiet=True))
    assert (len(plan["lower"][0]["rates"]), len(plan["rates"])) == (3, rates)
    text = " ".join(plan_tables(plan).split())
    assert "tiny-2 proxies" in text
    assert "of every change at tiny-8" in text


def test_models_named_on_the_command_line_lie_where_it_is_typed(family, tmp_path, monkeypatch):
    raw = of_family(family, lora_rank=4) | {"swarm": {"workers": 1}}
    config = parse_config(raw | {"proxy": raw["proxy"] | {"model": "tiny-8"}}, folder=family)
    monkeypatch.chdir(family)
    found = override(config, sizes="tiny-2, tiny-8,")
    assert found.swarm.sizes == tuple(str((family / name).resolve()) for name in ("tiny-2", "tiny-8"))
    assert found.proxy.model == found.swarm.sizes[-1]
    assert override(config, sizes="org/model,tiny-8").swarm.sizes[0] == "org/model"
    for nothing in ("", ","):
        with pytest.raises(UserError, match="--sizes names none"):
            override(config, sizes=nothing)
    with pytest.raises(UserError, match="--sizes: a path cannot be read"):
        override(config, sizes="~nosuchuser/x,b")


def test_a_ladder_that_goes_down_is_refused(family, tmp_path):
    settings = of_family(family, lora_rank=4)
    settings["swarm"]["sizes"] = [str(family / "tiny-8"), str(family / "tiny-2")]
    with pytest.raises(
        UserError, match=r"from .*tiny-8 \(.*M parameters\) to .*tiny-2 .*; name the smallest model first"
    ):
        plan_search(parse_config(settings), tmp_path / "run", Reporter(quiet=True))


def test_models_that_read_other_tokens_are_no_family(family, tmp_path):
    shutil.copytree(family, tmp_path / "models")
    path = tmp_path / "models" / "tiny-2" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, last = list(vocabulary)[5], list(vocabulary)[-1]
    vocabulary[first], vocabulary[last] = vocabulary[last], vocabulary[first]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    config = parse_config(of_family(tmp_path / "models"), folder=tmp_path / "models")
    with pytest.raises(UserError, match=r"tiny-2 reads other tokens than .*tiny-8; a ladder is of models of one"):
        plan_search(config, tmp_path / "run", Reporter(quiet=True))


@pytest.mark.parametrize("name", ["..", "/..", "a/../", "a\\..", "\n", "x" * 300, "org/модель", "C:"])
def test_a_size_never_names_a_place_outside(name):
    short = size_name(name)
    assert short not in {"", ".", ".."}
    assert not set(short) & set("/\\\n:")
    assert len(short) <= 80
