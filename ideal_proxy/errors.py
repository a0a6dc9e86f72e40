"""The errors a user can cause: one sentence each, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right; the message is one sentence: what is wrong, where, what to do.

    Attributes:
        exit_code: the exit status of the command that meets it.
    """

    exit_code = 1


class UsageError(UserError):
    """A wrong option, run file or mixture file: nothing was started."""

    exit_code = 2
