"""Functions that the user names as `package.module:function`, and the one that is told how a search goes on.

The tracker is called in the search's process with one plain dict, JSON-ready, whose `event` says what happened:

    run finished      run, role, seed, learning_rate, rows (full-size, by domain), loss (on the search rows, by
                      capability, nats per supervised token), tokens, seconds
    round fitted      round, runs, proposal (rows by domain), predicted_gain, predicted_lower, predicted_upper
    verdict           round, answer, gain, lower, upper, pairs
    search finished   sentence, rows (of the mixture file, by domain), adopted

Whatever it raises is told once and otherwise ignored: a tracker never ends a search, and no number depends on it. Runs
that were complete before this process began are not told again.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UsageError, UserError

OnEvent = Callable[[dict[str, Any]], object]


def load_entry_point(
    name: str, *, told: str, folder: str | Path, takes: str, error: type[UserError] = UserError
) -> Callable[..., Any]:
    """Import a function by its name.

    Args:
        name: `package.module:function`.
        told: what messages call it.
        folder: that modules are looked for in too, as messages name it; the caller puts it on the path.
        takes: what to do where the name leads to no function.
        error: raised where there is none.

    Returns:
        Callable: as the module holds it.

    Raises:
        error: there is no such module or function.
    """
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
    """Calls the user's function and survives it.

    Args:
        call: the function; None is told nothing.
        note: where the first failure is written.
    """

    def __init__(self, call: OnEvent | None, note: Callable[[str], None]) -> None:
        self._call = call
        self._note = note
        self._failed = False

    def __bool__(self) -> bool:
        """Tell whether anybody listens."""
        return self._call is not None

    def tell(self, event: str, **fields: Any) -> None:
        """Hand on what happened.

        Args:
            event: its kind.
            fields: JSON-ready details.
        """
        if self._call is None:
            return
        try:
            self._call({"event": event, **fields})
        except Exception as error:  # the user's function may do anything; a search of hours must outlive it
            if not self._failed:
                self._note(
                    f"warning: the tracker failed at '{event}' ({type(error).__name__}: {error}); the search goes on, "
                    "and further failures are not told"
                )
            self._failed = True


def load_tracker(name: str) -> OnEvent:
    """Import a function by the name that the run file gives.

    Args:
        name: `package.module:function`; modules are looked for in the current folder too.

    Returns:
        a function of one dict.

    Raises:
        UsageError: the name has another form, nothing is found there, or it cannot be called.
    """
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        raise UsageError(f"tracker is {name!r}; write package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return load_entry_point(name, told=f"tracker {name}", folder=here, takes="it must take one dict", error=UsageError)
