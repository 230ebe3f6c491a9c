"""Errors that the command line tells in one sentence, and what they exit with."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
TOO_MANY_DEAD_LETTERS: Final = 1
WRONG_USAGE: Final = 2
STOPPED: Final = 3


class UsageError(Exception):
    """The user asked for something that cannot be; nothing was written."""


class StoppedError(Exception):
    """Something that the run needs gave way; what is written is whole, and the run can be started again."""
