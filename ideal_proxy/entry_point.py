"""Import a function that the run file names as `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ideal_proxy.errors import UserError


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
