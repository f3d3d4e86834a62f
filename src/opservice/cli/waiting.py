"""`opservice wait` and `opservice watch`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from opservice.cli.connection import Connection
from opservice.cli.exits import Exit, worst
from opservice.cli.following import Follower, Update
from opservice.cli.live import Bars
from opservice.cli.operations import ids_argument, parent_of
from opservice.cli.output import Output, output_options
from opservice.cli.parameters import Duration
from opservice.cli.tables import state_of
from opservice.cli.target import server_options
from opservice.domain.operation import Removed
from opservice.methods.validation import MAX_IDS

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
    live = sys.stderr.isatty()
    updates = _follower(connection, timeout, reconnect).follow(unique, watch=live)
    if live:
        ends = _shown_as_bars(updates, unique)
    else:
        ends = {update.operation_id: update for update in updates if update.ended}
    _show_ends(output, [ends[id_] for id_ in unique])


@click.command("watch")
@click.argument("ids", nargs=-1, metavar="[ID...]")
@server_options(timeout=None)
@output_options
@click.option("--parent", help="Watch all operations of this parent, instead of IDs.")
@click.option(
    "--all-parents", is_flag=True, help="Watch those of all parents, and those without one."
)
@click.option(
    "--filter",
    "filter_",
    default="",
    metavar="FILTER",
    help="Of these, watch only what matches, such as 'done = false' (AIP-160).",
)
@_timeout_option
@_reconnect_option
def watch_command(
    connection: Connection,
    output: Output,
    ids: tuple[str, ...],
    parent: str | None,
    all_parents: bool,
    filter_: str,
    timeout: int | None,
    reconnect: int,
) -> None:
    """Show operations as they change, until they are done.

    On a terminal, shows a progress bar for each. Otherwise prints a line for each state. With --format json,
    each line is an object. The exit code says how they ended, as with `wait`.

    With --parent or --all-parents, prints the operations that there are, and then each change, also of
    operations that are new, until Ctrl-C or --timeout. An operation that is deleted, expires, or does not
    match --filter any more is shown as "removed", with the time of this machine (in JSON {"removedId": ID}).

    \b
    opservice watch ops3f1…
    opservice watch ops3f1… --format json | jq --unbuffered .progress
    opservice watch --parent folders/b1g… --filter 'created_by = "me"'
    """
    follower = _follower(connection, timeout, reconnect)
    unique = list(dict.fromkeys(ids))
    if parent is None and not all_parents:
        _check_ids(unique, filter_)
        _watch(output, follower, unique)
        return
    if unique:
        raise click.UsageError("give either IDs, or --parent or --all-parents")
    for news in follower.follow_parent(parent_of(parent or "", all_parents), filter_):
        if isinstance(news, Removed):
            output.removed(news.id)
        else:
            output.event(news, many=True)


def _check_ids(ids: Sequence[str], filter_: str) -> None:
    if filter_:
        raise click.UsageError("--filter needs --parent or --all-parents")
    if not ids:
        raise click.UsageError("give IDs, or --parent or --all-parents")
    if len(ids) > MAX_IDS:
        raise click.UsageError(f"at most {MAX_IDS} IDs can be watched: give --parent instead")


def _watch(output: Output, follower: Follower, ids: Sequence[str]) -> None:
    updates = follower.follow(ids, watch=True)
    if output.format == "table" and sys.stdout.isatty() and sys.stderr.isatty():
        ends = _shown_as_bars(updates, ids)
        _show_ends(output, [ends[id_] for id_ in ids])
        return
    exits: list[Exit] = []
    said: set[str] = set()
    for update in updates:
        if update.error is not None:
            _say(update, said)
        elif update.record is not None:
            output.event(update.record, many=len(ids) > 1)
        if update.ended:
            exits.append(_exit_of(update))
    click.get_current_context().exit(worst(exits))


def _shown_as_bars(updates: Iterable[Update], ids: Sequence[str]) -> dict[str, Update]:
    """How each of the operations ended."""
    ends = {}
    with Bars(ids) as bars:
        for update in updates:
            if update.error is not None and update.error.exit_code == Exit.NOT_FOUND:
                bars.missing(update.operation_id)
            elif update.record is not None:
                bars.show(update.operation_id, update.record)
            if update.ended:
                ends[update.operation_id] = update
    return ends


def _show_ends(output: Output, ends: Sequence[Update]) -> None:
    """Shows the operations as they are now, says what went wrong, and exits with the worst of it."""
    output.records([end.record for end in ends if end.record is not None], many=len(ends) > 1)
    said: set[str] = set()
    for end in ends:
        _say(end, said)
    click.get_current_context().exit(worst(map(_exit_of, ends)))


def _say(end: Update, said: set[str]) -> None:
    """Says what went wrong, unless it was said: what breaks a stream concerns all that it follows."""
    if end.error is not None and end.error.message not in said:
        said.add(end.error.message)
        end.error.show()


def _exit_of(end: Update) -> Exit:
    if end.error is not None:
        return Exit(end.error.exit_code)
    assert end.record is not None
    return _EXITS[state_of(end.record.operation)]


def _follower(connection: Connection, timeout: int | None, reconnect: int) -> Follower:
    seconds = None if timeout is None else timeout / 1e6
    return Follower(connection, timeout=seconds, reconnect=reconnect / 1e6)
