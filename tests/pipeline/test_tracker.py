"""The tracker: told in plain dicts, survived whatever it does, and refused in a sentence where it is not there."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
from accelerate import tracking
from builders import board, run

from ideal_proxy.errors import UsageError
from ideal_proxy.hooks import SERVICES, Service, Tracker, check_service, event_values, listeners, load_tracker
from ideal_proxy.mixture.file import DomainVolume, MixtureFile, save_mixture
from ideal_proxy.store import MARKER


def test_it_is_told_and_nobody_is_not():
    heard: list[dict] = []
    tracker = Tracker([heard.append], pytest.fail)
    assert tracker
    tracker.tell("verdict", round=1, gain=0.02)
    assert heard == [{"event": "verdict", "round": 1, "gain": 0.02}]
    nobody = Tracker([], pytest.fail)
    assert not nobody
    nobody.tell("verdict")


def test_failures_are_survived_and_noted_once():
    notes: list[str] = []
    calls: list[str] = []
    heard: list[dict] = []

    def broken(event):
        calls.append(event["event"])
        raise ConnectionError("no route")

    tracker = Tracker([broken, heard.append], notes.append)
    for name in ("run finished", "round fitted", "verdict"):
        tracker.tell(name)
    assert calls == ["run finished", "round fitted", "verdict"]
    assert [event["event"] for event in heard] == calls  # others hear all the same
    assert len(notes) == 1
    assert "the tracker failed at 'run finished' (ConnectionError: no route); the search goes on" in notes[0]


def test_ctrl_c_in_a_tracker_still_ends_the_search():
    def interrupted(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tracker([interrupted], pytest.fail).tell("verdict")


def test_a_function_is_found_in_the_current_folder(tmp_path, monkeypatch):
    text = "import json, pathlib\nclass To:\n    @staticmethod\n    def file(event):\n"
    text += "        pathlib.Path('heard.jsonl').write_text(json.dumps(event))\nnumber = 3\n"
    (tmp_path / "own_tracker_of_a_test.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Tracker([load_tracker("own_tracker_of_a_test:To.file")], pytest.fail).tell("verdict", pairs=3)
    assert json.loads((tmp_path / "heard.jsonl").read_text()) == {"event": "verdict", "pairs": 3}
    with pytest.raises(UsageError, match="own_tracker_of_a_test:number is no function; it must take one dict"):
        load_tracker("own_tracker_of_a_test:number")
    with pytest.raises(UsageError, match=r"cannot be imported \(AttributeError.*modules are looked for in"):
        load_tracker("own_tracker_of_a_test:nothing")


@pytest.mark.parametrize("name", ["wandb.log", "a b:c", ":f", "m:"])
def test_another_form_is_refused(name):
    with pytest.raises(UsageError, match="write package\\.module:function"):
        load_tracker(name)


def test_a_missing_module_is_named():
    with pytest.raises(UsageError, match="tracker no_such_module:f cannot be imported \\(ModuleNotFoundError"):
        load_tracker("no_such_module:f")


class FakeTracker:
    """Stands for accelerate's tracker of a service: takes what the real ones take and keeps what it is given."""

    made: ClassVar[list[FakeTracker]] = []

    def __init__(self, run_name: str, **options: object) -> None:
        self.run_name, self.options = run_name, options
        self.logged: list[tuple[int, dict]] = []
        self.finished = False
        self.made.append(self)

    def start(self) -> None:
        assert not self.logged

    def log(self, values: dict, step: int) -> None:
        assert not self.finished
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """As if wandb were installed."""
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", FakeTracker)
    monkeypatch.setattr(FakeTracker, "made", [])
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return FakeTracker.made


def test_an_event_becomes_numbers_under_names_that_every_service_takes():
    event = {
        "event": "run finished", "run": "r1", "role": "design", "seed": 3, "learning_rate": 1e-3,
        "rows": {"maths/high": 10, "a:b*": 4}, "loss": {"maths": 1.5},
    }  # fmt: skip
    assert event_values(event, text=True) == {
        "design/seed": 3.0, "design/learning_rate": 1e-3, "design/rows/maths/high": 10.0, "design/rows/a_b_": 4.0,
        "design/loss/maths": 1.5,
    }  # fmt: skip
    verdict = {"event": "verdict", "round": 1, "answer": "improves", "gain": 0.02}
    numbers = {"verdict/round": 1.0, "verdict/gain": 0.02}
    assert event_values(verdict, text=False) == numbers
    assert event_values(verdict, text=True) == {**numbers, "verdict/answer": "improves"}


def test_a_service_starts_with_the_first_event_and_is_finished(wandb, tmp_path):
    calls = listeners(None, ["wandb", "wandb"], tmp_path, "mix")
    with Tracker(calls, pytest.fail):
        pass
    assert not wandb

    def stopped(tracker):
        for number in range(3):
            (tmp_path / "runs" / str(number)).mkdir(parents=True)
            (tmp_path / "runs" / str(number) / MARKER).touch()
            tracker.tell("run finished", role="base", loss={"a": float(number)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Tracker(calls, pytest.fail) as tracker:
        stopped(tracker)
    (made,) = wandb
    assert made.logged == [(n + 1, {"base/loss/a": float(n)}) for n in range(3)]
    assert made.finished
    assert made.run_name == "ideal-proxy"
    assert made.options == {"name": "mix", "dir": str(tmp_path.resolve())}


def test_the_run_file_may_name_a_service_and_a_function_takes_its_place(wandb, tmp_path):
    heard: list[dict] = []
    (service,) = listeners("wandb", [], tmp_path, "mix")
    assert isinstance(service, Service)
    assert listeners("wandb", [], tmp_path, "mix", heard.append) == [heard.append]
    both = listeners("wandb", ["wandb"], tmp_path, "mix", heard.append)
    assert both[0] == heard.append
    assert isinstance(both[1], Service)


def test_a_service_that_fails_is_survived_beside_others(wandb, tmp_path, monkeypatch):
    tries = []

    def refuse(self):
        tries.append(self)
        raise ConnectionError("no route")

    monkeypatch.setattr(FakeTracker, "start", refuse)
    heard: list[dict] = []
    notes: list[str] = []
    with Tracker(listeners(None, ["wandb"], tmp_path, "mix", heard.append), notes.append) as tracker:
        tracker.tell("verdict", gain=0.1)
        tracker.tell("verdict", gain=0.2)
    assert [event["gain"] for event in heard] == [0.1, 0.2]
    assert len(notes) == len(tries) == 1
    assert "the tracker failed at 'verdict' (ConnectionError: no route)" in notes[0]


@pytest.mark.parametrize("command", [["search"], ["scale-up", "mixture.json", "--model", "scratch:0.1M"]])
def test_an_unknown_or_missing_service_is_one_sentence(command, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["mlflow"])
    domain = DomainVolume(name="a", source="a.jsonl", fingerprint="0" * 64, available=9, rows=3, base_rows=9)
    save_mixture(tmp_path / "mixture.json", MixtureFile(domains=[domain]))
    answer = run(*command, "--track", "neptune", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "error: --track is 'neptune'; choose wandb, mlflow, trackio or tensorboard\n"
    for name in set(SERVICES) - {"mlflow"}:
        answer = run(*command, "--track", name, cwd=tmp_path)
        assert answer.returncode == 2
        assert answer.stderr == f"error: --track {name} needs a package that is not installed; pip install {name}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mixture.json"]
    check_service("mlflow", "--track")


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install tensorboard)")
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / MARKER).touch()
    with Tracker(listeners("tensorboard", [], tmp_path, "mix"), pytest.fail) as tracker:
        tracker.tell("run finished", run="one", role="design", loss={"maths": 1.25, "code": 0.5})
        tracker.tell("verdict", round=1, answer="improves", gain=0.0625)
    assert board(tmp_path / "tensorboard") == {
        "design/loss/maths": [(1, 1.25)], "design/loss/code": [(1, 0.5)], "verdict/round": [(1, 1.0)],
        "verdict/gain": [(1, 0.0625)],
    }  # fmt: skip
