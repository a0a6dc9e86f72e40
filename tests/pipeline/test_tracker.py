"""The tracker: told in plain dicts, survived whatever it does, and refused in a sentence where it is not there."""

from __future__ import annotations

import json

import pytest

from ideal_proxy.errors import UsageError
from ideal_proxy.hooks import Tracker, load_tracker


def test_it_is_told_and_nobody_is_not():
    heard: list[dict] = []
    tracker = Tracker(heard.append, pytest.fail)
    assert tracker
    tracker.tell("verdict", round=1, gain=0.02)
    assert heard == [{"event": "verdict", "round": 1, "gain": 0.02}]
    nobody = Tracker(None, pytest.fail)
    assert not nobody
    nobody.tell("verdict")


def test_failures_are_survived_and_noted_once():
    notes: list[str] = []
    calls: list[str] = []

    def broken(event):
        calls.append(event["event"])
        raise ConnectionError("no route")

    tracker = Tracker(broken, notes.append)
    for name in ("run finished", "round fitted", "verdict"):
        tracker.tell(name)
    assert calls == ["run finished", "round fitted", "verdict"]
    assert len(notes) == 1
    assert "the tracker failed at 'run finished' (ConnectionError: no route); the search goes on" in notes[0]


def test_ctrl_c_in_a_tracker_still_ends_the_search():
    def interrupted(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tracker(interrupted, pytest.fail).tell("verdict")


def test_a_function_is_found_in_the_current_folder(tmp_path, monkeypatch):
    text = "import json, pathlib\nclass To:\n    @staticmethod\n    def file(event):\n"
    text += "        pathlib.Path('heard.jsonl').write_text(json.dumps(event))\nnumber = 3\n"
    (tmp_path / "own_tracker_of_a_test.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Tracker(load_tracker("own_tracker_of_a_test:To.file"), pytest.fail).tell("verdict", pairs=3)
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
