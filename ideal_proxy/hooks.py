"""Functions that the user names as `package.module:function`, and the one that is told how a search goes on.

A tracker is called in the search's process with one plain dict, JSON-ready, whose `event` says what happened:

    run finished      run, role, seed, learning_rate, rows (full-size, by domain), loss (on the search rows, by
                      capability, nats per supervised token), tokens, seconds
    round fitted      round, runs, proposal (rows by domain), predicted_gain, predicted_lower, predicted_upper
    verdict           round, answer, gain, lower, upper, pairs
    search finished   sentence, rows (of the mixture file, by domain), adopted

A tracking service (wandb, mlflow, trackio, tensorboard) gets the numbers of these events by accelerate's trackers.

Whatever a tracker raises is told once and otherwise ignored: a tracker never ends a search, and no number depends on
it. Runs that were complete before this process began are not told again.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UsageError, UserError
from ideal_proxy.store import MARKER

OnEvent = Callable[[dict[str, Any]], object]
SERVICES = ("wandb", "mlflow", "trackio", "tensorboard")
PROJECT = "ideal-proxy"


def load_entry_point(
    name: str, *, told: str, folder: str | Path, takes: str, error: type[UserError] = UserError
) -> Callable[..., Any]:
    """Import `package.module:function`; messages call it `told` and say that modules are looked for in `folder` too."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as problem:  # whatever the module does when it is imported
        raise error(
            f"{told} cannot be imported ({type(problem).__name__}: {problem}); "
            f"modules are looked for in {folder} and where Python finds packages"
        ) from problem
    if not callable(found):
        raise error(f"{told} is no function; {takes}")
    return found  # type: ignore[no-any-return]


class Tracker:
    """Calls what hears of the search and survives it; at the end of the `with` block services are finished."""

    def __init__(self, calls: Sequence[OnEvent], note: Callable[[str], None]) -> None:
        self._calls = calls
        self._note = note
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        """Tell whether anybody listens."""
        return bool(self._calls)

    def __enter__(self) -> Tracker:
        """Return self; services start with the first event."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the services, however the search ended."""
        for number, call in enumerate(self._calls):
            if isinstance(call, Service):
                self._survive(number, call.finish, "the end")

    def tell(self, event: str, **fields: Any) -> None:
        """Hand on what happened: its kind, and JSON-ready details."""
        for number, call in enumerate(self._calls):
            self._survive(number, lambda call=call: call({"event": event, **fields}), f"'{event}'")  # type: ignore[misc]

    def _survive(self, number: int, call: Callable[[], object], when: str) -> None:
        try:
            call()
        except Exception as error:  # a tracker may do anything; a search of hours must outlive it
            if number not in self._failed:
                self._note(
                    f"warning: the tracker failed at {when} ({type(error).__name__}: {error}); the search goes on, "
                    "and further failures are not told"
                )
            self._failed.add(number)


class Service:
    """Hands the numbers of events on to a tracking service; it is started by the first event.

    A run's losses stand under its role, everything else under the event's first word. The step is the number of
    complete runs, so that a search that goes on after a stop goes on there too.
    """

    def __init__(self, name: str, folder: Path, title: str) -> None:
        self._name, self._folder, self._title = name, folder, title
        self._tracker: Any = None
        self._tried = False

    def __call__(self, event: dict[str, Any]) -> None:
        """Log an event; a service that could not be started is not tried again, for each try may wait for a network."""
        if not self._tried:
            self._tried = True
            self._tracker = self._start()
        if self._tracker is None:
            return
        values = event_values(event, text=self._name != "mlflow")  # mlflow's metrics are numbers
        step = sum(1 for _ in self._folder.glob(f"runs/*/{MARKER}"))
        self._tracker.log(values, step=step)

    def finish(self) -> None:
        """End what was started."""
        if self._tracker is not None:
            self._tracker.finish()

    def _start(self) -> Any:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # accelerate's trackers ask it which process this is; the search itself uses no device
        project = os.environ.get("WANDB_PROJECT", PROJECT) if self._name == "wandb" else PROJECT
        folder = str(self._folder.resolve())
        options: dict[str, Any] = {
            "tensorboard": {"run_name": "tensorboard", "logging_dir": folder},
            "mlflow": {"experiment_name": project, "run_name": self._title},
            "trackio": {"run_name": project, "name": self._title},
            "wandb": {"run_name": project, "name": self._title, "dir": folder},
        }[self._name]  # accelerate calls the project run_name
        tracker = LOGGER_TYPE_TO_CLASS[self._name](**options)
        tracker.start()
        return tracker


def event_values(event: dict[str, Any], *, text: bool) -> dict[str, float | str]:
    """Return an event's numbers, and its texts where asked, under names such as `design/loss/maths`."""
    first = event["role"] if event["event"] == "run finished" else event["event"].split()[0]
    values: dict[str, float | str] = {}
    for key, value in event.items():
        for name, entry in value.items() if isinstance(value, dict) else [("", value)]:
            place = re.sub(r"[^\w./ -]", "_", f"{first}/{key}/{name}".rstrip("/"))  # what every service takes in a name
            if isinstance(entry, int | float):
                values[place] = float(entry)
            elif text and key in {"answer", "sentence"}:
                values[place] = str(entry)
    return values


def check_service(name: str, told: str) -> None:
    """Refuse a tracking service that is unknown, or whose package is not installed."""
    if name not in SERVICES:
        raise UsageError(f"{told} is {name!r}; choose {', '.join(SERVICES[:-1])} or {SERVICES[-1]}")
    from accelerate.tracking import get_available_trackers

    if name not in {str(found) for found in get_available_trackers()}:
        raise UsageError(f"{told} {name} needs a package that is not installed; pip install {name}")


def listeners(
    tracker: str | None, services: Sequence[str], folder: Path, title: str, on_event: OnEvent | None = None
) -> list[OnEvent]:
    """Return all that hear of a search: services, and a given function or else what the run file's `tracker` names."""
    calls: list[OnEvent] = [on_event] if on_event is not None else []
    names = [(name, "--track") for name in services]
    if on_event is None and tracker in SERVICES:
        names.append((tracker, "tracker:"))
    elif on_event is None and tracker is not None:
        calls.append(load_tracker(tracker))
    for name, told in names:
        check_service(name, told)
    return [*calls, *(Service(name, folder, title) for name in dict.fromkeys(name for name, _ in names))]


def load_tracker(name: str) -> OnEvent:
    """Import a function of one dict by the name that the run file gives; the current folder is looked in too."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        raise UsageError(f"tracker is {name!r}; write package.module:function, or one of {', '.join(SERVICES)}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return load_entry_point(name, told=f"tracker {name}", folder=here, takes="it must take one dict", error=UsageError)
