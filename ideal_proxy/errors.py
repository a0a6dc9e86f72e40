"""The errors a user can cause: one sentence each, no traceback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """Something the user can put right; the message is one sentence: what is wrong, where, what to do.

    Attributes:
        exit_code: the exit status of the command that meets it.
    """

    exit_code = 1

    def __str__(self) -> str:
        """Say it in at most 2,000 characters: names, values and paths may be of any length."""
        return cut(super().__str__())


class UsageError(UserError):
    """A wrong option, run file or mixture file: nothing was started."""

    exit_code = 2


MOST_SEED = 2**31 - 1  # what the generators of every library take
UNSEEN = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters by which a name could move the cursor, hide text or turn its direction; for a class of a pattern."""


def shortened(text: str, most: int = 60) -> str:
    """Cut a text to what fits in a message."""
    return text if len(text) <= most else text[: most - 3] + "..."


def some(names: Sequence[Any], most: int = 5) -> str:
    """Give the first names of a list as text, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shortened(str(name), 120) for name in names[:most]) + more


def cut(text: str, most: int = 2_000) -> str:
    """Cut a text in its middle, for its beginning says what is wrong and its end what to do."""
    return text if len(text) <= most else f"{text[: most * 2 // 3 - 5]} ... {text[-most // 3 :]}"
