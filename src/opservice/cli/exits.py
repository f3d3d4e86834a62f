"""Exit codes, and how a command says that it could not do what was asked."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import IO, Any

import click

from opservice.common.plain import plain_lines


class Exit(IntEnum):
    DONE = 0
    ERROR = 1
    USAGE = 2  # click's own
    FAILED = 3
    CANCELLED = 4
    TIMED_OUT = 5
    NOT_FOUND = 6
    UNREACHABLE = 7
    REFUSED = 8


INTERRUPTED = 130

_WORST_FIRST = (
    Exit.ERROR,
    Exit.UNREACHABLE,
    Exit.REFUSED,
    Exit.NOT_FOUND,
    Exit.TIMED_OUT,
    Exit.FAILED,
    Exit.CANCELLED,
    Exit.DONE,
)


def worst(exits: Iterable[Exit]) -> Exit:
    return min(exits, key=_WORST_FIRST.index, default=Exit.DONE)


class CommandFailed(click.ClickException):
    """Ends the command with the message on standard error, and this exit code."""

    def __init__(self, message: str, exit_code: Exit) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc] # click reads the instance's, too

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo("opservice: " + plain_lines(self.message), file=file, err=file is None)
