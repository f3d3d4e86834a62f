"""`opservice wait` and `opservice watch`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import click

from opservice.cli.connection import Connection
from opservice.cli.exits import CommandFailed, Exit, worst
from opservice.cli.following import Follower, Update
from opservice.cli.live import Bars
from opservice.cli.operations import ids_argument
from opservice.cli.output import Output, output_options
from opservice.cli.parameters import Duration
from opservice.cli.tables import state_of
from opservice.cli.target import server_options

Command = TypeVar("Command", bound=Callable[..., Any])

_EXITS = {"done": Exit.DONE, "failed": Exit.FAILED, "cancelled": Exit.CANCELLED}

_timeout_option = click.option(
    "--timeout", type=Duration(), help="Give up after this time. Default: never."
)
_reconnect_option = click.option(
    "--reconnect",
    type=Duration(),
    default="1m",
    show_default=True,
    help="Give up when the server has been away for this time.",
)


@click.command("wait")
@ids_argument
@server_options(timeout=None)
@output_options
@_timeout_option
@_reconnect_option
def wait_command(
    connection: Connection,
    output: Output,
    ids: tuple[str, ...],
    timeout: int | None,
    reconnect: int,
) -> None:
    """Wait until operations are done, and show them.

    The exit code says how they ended (see `opservice --help`). On a terminal, shows progress. Continues when
    the server restarts.

    \b
    opservice wait ops3f1… && deploy
    opservice wait ops3f1… ops7k2… --timeout 10m --format json
    """
    unique = list(dict.fromkeys(ids))
    ends: dict[str, Update] = {}
    bars = Bars(unique) if sys.stderr.isatty() else None
    follower = _follower(connection, bars is not None, timeout, reconnect)
    with bars or nullcontext():
        for update in follower.follow(unique):
            if bars is not None and update.record is not None:
                bars.show(update.operation_id, update.record)
            if update.ended:
                ends[update.operation_id] = update
    records = [end.record for id_ in unique if (end := ends[id_]).record is not None]
    output.records(records, many=len(unique) > 1)
    _exit(connection, [ends[id_] for id_ in unique])


@click.command("watch")
@click.argument("id_", metavar="ID")
@server_options(timeout=None)
@output_options
@_timeout_option
@_reconnect_option
def watch_command(
    connection: Connection, output: Output, id_: str, timeout: int | None, reconnect: int
) -> None:
    """Show an operation as it changes, until it is done.

    On a terminal, shows a progress bar. Otherwise prints a line for each state. With --format json, each line
    is an object. The exit code says how the operation ended, as with `wait`.

    \b
    opservice watch ops3f1…
    opservice watch ops3f1… --format json | jq --unbuffered .progress
    """
    live = output.format == "table" and sys.stdout.isatty() and sys.stderr.isatty()
    bars = Bars([id_]) if live else None
    end = None
    with bars or nullcontext():
        shown = -1
        for update in _follower(connection, True, timeout, reconnect).follow([id_]):
            if update.record is not None and update.record.revision > shown:
                shown = update.record.revision
                if bars is None:
                    output.event(update.record)
                else:
                    bars.show(id_, update.record)
            end = update
    assert end is not None
    if live and end.record is not None:
        output.records([end.record], many=False)
    _exit(connection, [end])


def _follower(connection: Connection, watch: bool, timeout: int | None, reconnect: int) -> Follower:
    seconds = None if timeout is None else timeout / 1e6
    return Follower(connection, watch=watch, timeout=seconds, reconnect=reconnect / 1e6)


def _exit(connection: Connection, ends: Sequence[Update]) -> None:
    """Says what went wrong, and exits with the worst of it."""
    exits = []
    for end in ends:
        failed = None
        if end.error is not None:
            failed = connection.failed(end.error)
        elif end.record is None or not end.record.operation.done:
            failed = CommandFailed(f"{end.operation_id}: not done within --timeout", Exit.TIMED_OUT)
        if failed is not None:
            failed.show()
            exits.append(Exit(failed.exit_code))
        else:
            assert end.record is not None
            exits.append(_EXITS[state_of(end.record.operation)])
    click.get_current_context().exit(worst(exits))
