"""`opservice run`: a command as the work of an operation."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import click
import grpc
from google.rpc.error_details_pb2 import ErrorInfo

from opservice.cli.connection import Connection, exit_code_of
from opservice.cli.exits import CommandFailed, Exit
from opservice.cli.parameters import Duration
from opservice.cli.target import server_options
from opservice_client import CancelPolicy, Failed, StartFailed, Work

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126
"""As shells have them."""

_FORWARDED = (signal.SIGTERM, signal.SIGHUP)


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
@click.option(
    "--kill-after",
    type=Duration(),
    default="30s",
    show_default=True,
    help="After a cancel, send SIGKILL when the command still runs this long after SIGTERM.",
)
@click.option("-q", "--quiet", is_flag=True, help="Do not print the id.")
def run_command(
    connection: Connection,
    command: Sequence[str],
    description: str | None,
    cancel_policy: str,
    lease: int,
    operation_timeout: int | None,
    retention: int | None,
    kill_after: int,
    quiet: bool,
    **texts: str,
) -> None:
    """Run a command as the work of an operation, and exit with its exit code.

    Starts an operation, runs COMMAND and renews the lease meanwhile. The operation is completed when the
    command exits with 0, and fails with UNKNOWN otherwise. When the operation is cancelled, or ends for
    another reason, the command gets SIGTERM. SIGTERM and SIGHUP of this program are passed on.

    The command finds the operation's id in OPSERVICE_OPERATION_ID and its lease token in
    OPSERVICE_LEASE_TOKEN, as `opservice report` needs them. The id is printed on standard error.

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
    with connection.new_producer() as producer:
        try:
            work = producer.start(
                description=command[0] if description is None else description,
                cancel_policy=CancelPolicy.Value(cancel_policy.upper()),
                lease=timedelta(microseconds=lease),
                **options,
            )
        except StartFailed as error:
            raise CommandFailed(str(error), exit_code_of(error.code)) from error
        if not quiet:
            click.echo(f"opservice: operation {work.id}", err=True)
        if not work.owned:
            click.echo("opservice: another call with this key runs it; not run here", err=True)
            return
        exit_code = _run(work, command, kill_after / 1e6)
    click.get_current_context().exit(exit_code)


def _run(work: Work, command: Sequence[str], kill_after: float) -> int:
    """The exit code. Ends the operation accordingly."""
    exit_code = int(Exit.ERROR)
    with work:
        exit_code = _exit_code(work, command, kill_after)
        if exit_code == 0:
            work.complete({"exitCode": 0})
        else:
            work.raise_if_cancelled()
            message = f"The command exited with {exit_code}"
            detail = ErrorInfo(
                reason="COMMAND_FAILED", domain="opservice", metadata={"exit_code": str(exit_code)}
            )
            work.fail(Failed(grpc.StatusCode.UNKNOWN, message, [detail]))
    return exit_code


def _exit_code(work: Work, command: Sequence[str], kill_after: float) -> int:
    """Of the command, once it has ended: 128 and the number of the signal that ended it, as in a shell."""
    environment = {
        **os.environ,
        "OPSERVICE_OPERATION_ID": work.id,
        "OPSERVICE_LEASE_TOKEN": work.lease_token,
    }
    ended = threading.Event()
    with _signals() as signals:
        try:
            process = subprocess.Popen(command, env=environment)  # noqa: S603 - it is what was asked for
        except OSError as error:
            click.echo(f"opservice: cannot run {command[0]}: {error.strerror}", err=True)
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE

        def stop() -> None:
            process.terminate()
            if not ended.wait(kill_after):
                process.kill()

        signals.pass_to(process)
        work.on_cancelled(stop)
        code = process.wait()
        ended.set()
    return code if code >= 0 else 128 - code


class _Signals:
    """Passes signals on to a process, also those that come before it is there."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: list[int] = []

    def pass_to(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        for number in self._waiting:
            process.send_signal(number)

    def handle(self, number: int, _: FrameType | None) -> None:
        if self._process is None:
            self._waiting.append(number)
        else:
            self._process.send_signal(number)


@contextmanager
def _signals() -> Iterator[_Signals]:
    """A terminal sends Ctrl-C to the command too, so that this program ignores it."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in _FORWARDED}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
