"""A ladder: small proxies and few larger ones in one fit; the larger size is predicted and checked."""

from __future__ import annotations

import pytest
from builders import config_of, interrupted, small_search, without_times

from ideal_proxy.config import dump_config, parse_config
from ideal_proxy.errors import UsageError
from ideal_proxy.pipeline.finished import search
from ideal_proxy.pipeline.status import read_status


def ladder(**changes):
    """Give a run file of two sizes whose search takes seconds."""
    settings = small_search(protect="none")
    proxy = {"vocabulary": 300, "context": 48, "fraction": 0.08, "dtype": "float32"}
    return {**settings, "proxy": proxy, "swarm": {"sizes": ["0.1M", "1M"], "runs": [8, 5], "workers": 1}, **changes}


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
        ({"swarm": {"sizes": ["0.1M", "1M"]}, "proxy": {"model": "x"}}, "a ladder is of scratch proxies"),
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
