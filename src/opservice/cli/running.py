"""`opservice run`: a command as the work of an operation."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click
import grpc
from google.rpc.error_details_pb2 import ErrorInfo

from opservice.cli.child import Ended, Signals, run_child, say, signals_kept
from opservice.cli.connection import Connection, exit_code_of
from opservice.cli.exits import CommandFailed
from opservice.cli.parameters import Duration
from opservice.cli.payloads import Payloads
from opservice.cli.producing import labels_of, labels_option, metadata_option
from opservice.cli.target import server_options
from opservice_client import CancelPolicy, Failed, StartFailed, Work

_LONGEST_DESCRIPTION = 256


@click.command("run")
@click.argument("command", nargs=-1, required=True, metavar="COMMAND [ARGUMENT]...")
@server_options()
@click.option("--description", help="What the work is, for people. Default: the command's name.")
@click.option("--parent", default="", help="Parent of the operation, such as folders/b1g….")
@click.option("--method", default="", help="Method whose call started the work.")
@click.option("--created-by", default="", help="User for whom the work is done.")
@click.option(
    "--cancel-policy",
    type=click.Choice([each.lower() for each in CancelPolicy.keys()[1:]]),
    default="cooperative",
    show_default=True,
    help="What Cancel does: end the operation at once, let the command end first, or nothing.",
)
@click.option(
    "--lease",
    type=Duration(),
    default="60s",
    show_default=True,
    help="End the operation when this program is not heard of for this time.",
)
@click.option("--operation-timeout", type=Duration(), help="End the operation after this time.")
@click.option("--retention", type=Duration(), help="Keep the operation this long after it is done.")
@click.option(
    "--idempotency-key",
    default="",
    help="With the same key, only the first call runs the command.",
)
@click.option("--id-prefix", default="", help="First 3 characters of the id.")
@labels_option
@metadata_option
@click.option(
    "--kill-after",
    type=Duration(),
    default="30s",
    show_default=True,
    help="After a cancel, send SIGKILL when the command still runs this long after SIGTERM.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print neither the id nor outages.")
def run_command(
    connection: Connection,
    command: Sequence[str],
    description: str | None,
    cancel_policy: str,
    lease: int,
    operation_timeout: int | None,
    retention: int | None,
    labels: tuple[str, ...],
    metadata: str | None,
    kill_after: int,
    quiet: bool,
    **texts: str,
) -> None:
    """Run a command as the work of an operation, and exit with its exit code.

    Starts an operation, runs COMMAND on this terminal and renews the lease meanwhile. The exit code says
    how the operation ends:

    \b
    0            completed with google.protobuf.Empty
    another      failed with UNKNOWN, "The command exited with 3"
    128 + N      failed with UNKNOWN, "The command was ended by SIGKILL"
    126, 127     failed with UNKNOWN, "The command could not be run: …"

    When the operation is cancelled, or ends for another reason such as its timeout, the command gets
    SIGTERM. If it exits with another code than 0 after a cancel, the operation is CANCELLED.

    SIGTERM, SIGHUP and SIGINT of this program are passed on to the command. Once the command has ended,
    the first signal is ignored while the result is sent, and the second ends this program.

    When the server cannot be reached within --timeout at the start, the command is not run, and the exit
    code is 7. When it goes away later, the command runs on. Renewals are repeated until the command ends,
    and the result for 5 minutes.

    The command has OPSERVICE_OPERATION_ID, OPSERVICE_LEASE_TOKEN and OPSERVICE_SERVER in its environment:
    `opservice report` needs no more. The id is printed on standard error.

    With an --idempotency-key that another call has used, the command is not run and the exit code is 0.

    \b
    opservice run -- pg_dump --file backup.sql production
    opservice run --description 'Nightly backup' --operation-timeout 2h -- /usr/local/bin/backup
    opservice run --idempotency-key "backup-$(date +%F)" -- /usr/local/bin/backup
    """
    options: dict[str, Any] = {key: text for key, text in texts.items() if text}
    for name, value in (("timeout", operation_timeout), ("retention", retention)):
        if value is not None:
            options[name] = timedelta(microseconds=value)
    if labels:
        options["labels"] = labels_of(labels)
    if metadata is not None:
        options["metadata"] = Payloads(connection, ()).from_json("--metadata", metadata)
    with _logged(quiet=quiet), signals_kept() as signals, connection.new_producer() as producer:
        try:
            work = producer.start(
                description=command[0][:_LONGEST_DESCRIPTION]
                if description is None
                else description,
                cancel_policy=CancelPolicy.Value(cancel_policy.upper()),
                lease=timedelta(microseconds=lease),
                **options,
            )
        except StartFailed as error:
            raise CommandFailed(str(error), exit_code_of(error.code)) from error
        if not quiet:
            say(f"operation {work.id}")
        if not work.owned:
            if not quiet:
                say("another call with this key runs it; not run here")
            return
        environment = {
            **os.environ,
            "OPSERVICE_SERVER": connection.address,
            "OPSERVICE_OPERATION_ID": work.id,
            "OPSERVICE_LEASE_TOKEN": work.lease_token,
        }
        ended = run_work(work, command, environment, signals, kill_after / 1e6)
    click.get_current_context().exit(ended.exit_code)


def run_work(
    work: Work,
    command: Sequence[str],
    environment: dict[str, str],
    signals: Signals,
    kill_after: float,
) -> Ended:
    """Runs the command, and ends the operation as the command has ended."""
    with work:
        ended = run_child(
            command, environment, signals, on_cancelled=work.on_cancelled, kill_after=kill_after
        )
        signals.command_ended()
        if ended.exit_code == 0:
            work.complete()
        else:
            work.raise_if_cancelled()
            detail = ErrorInfo(
                reason="COMMAND_FAILED",
                domain="opservice",
                metadata={"exit_code": str(ended.exit_code)},
            )
            work.fail(Failed(grpc.StatusCode.UNKNOWN, ended.message, [detail]))
    if not work.operation.done:  # also for those who want no outages told
        say(f"the result of {work.id} was not sent: it ends when its lease expires")
    return ended


class _OnStandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextmanager
def _logged(*, quiet: bool) -> Iterator[None]:
    """Shows what the client library logs, such as an outage, as this program's other messages."""
    logger = logging.getLogger("opservice_client")
    handler = logging.NullHandler() if quiet else _OnStandardError(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
