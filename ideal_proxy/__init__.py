"""ideal-proxy: how many rows of each data set should go into this fine-tune?

The names of `__all__` are the public interface; each is imported when it is first used, so that `import ideal_proxy`
is instant.

    from ideal_proxy import search, load_run, write_report, what_if

    run = search("mix.yaml", "runs/mix")          # or load_run("runs/mix")
    run.result["verdict"]["sentence"]
    what_if(run, {"coding": 6000, "trust": "-20%"}).gain
    write_report(run)

The figures are in `ideal_proxy.plots`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ideal_proxy.constraints import Constraints, Problem
    from ideal_proxy.errors import UserError
    from ideal_proxy.finished import SearchRun, load_run, search
    from ideal_proxy.fit import ResponseModel
    from ideal_proxy.materialise import apply_mixture
    from ideal_proxy.mixture_file import MixtureFile as Mixture
    from ideal_proxy.mixture_file import load_mixture, save_mixture
    from ideal_proxy.objective import Objective
    from ideal_proxy.optimize import optimize
    from ideal_proxy.pareto import pareto
    from ideal_proxy.report import write_report
    from ideal_proxy.what_if import what_if

__version__ = "0.1.0"

__all__ = [
    "Constraints",
    "Mixture",
    "Objective",
    "Problem",
    "ResponseModel",
    "SearchRun",
    "UserError",
    "apply_mixture",
    "load_mixture",
    "load_run",
    "optimize",
    "pareto",
    "save_mixture",
    "search",
    "what_if",
    "write_report",
]

_PLACES = {
    "Constraints": "constraints",
    "Mixture": "mixture_file:MixtureFile",
    "Objective": "objective",
    "Problem": "constraints",
    "ResponseModel": "fit",
    "SearchRun": "finished",
    "UserError": "errors",
    "apply_mixture": "materialise",
    "load_mixture": "mixture_file",
    "load_run": "finished",
    "optimize": "optimize",
    "pareto": "pareto",
    "save_mixture": "mixture_file",
    "search": "finished",
    "what_if": "what_if",
    "write_report": "report",
}


class _Package(ModuleType):
    """The package itself: importing `ideal_proxy.search`, a module, does not hide `search`, the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
