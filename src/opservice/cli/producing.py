"""`opservice start`, `renew`, `report`, `complete` and `fail`: work that a script does, as an operation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from os import environ
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
from google.protobuf.duration_pb2 import Duration as DurationPb
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, Progress
from opservice._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    FailRequest,
    RenewRequest,
    StartRequest,
)
from opservice.cli.connection import Connection
from opservice.cli.exits import Exit
from opservice.cli.output import Output, output_options
from opservice.cli.parameters import Duration
from opservice.cli.target import read_secret, server_options

Command = TypeVar("Command", bound=Callable[..., Any])
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_PAYLOAD = 'as JSON with an "@type", or @FILE to read that from a file (@- is standard input).'

_lease_token_option = click.option(
    "--lease-token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the lease token. Default: the variable OPSERVICE_LEASE_TOKEN.",
)
labels_option = click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="A label, by which operations can be filtered. May be repeated.",
)
metadata_option = click.option(
    "--metadata", metavar="JSON", help="What the operation works on, " + _PAYLOAD
)


def _renewal_options(command: Command) -> Command:
    """The options of a RenewRequest: the command gets the file of its lease token, and what is new."""

    @server_options()
    @output_options
    @_lease_token_option
    @click.option("--done", type=click.IntRange(min=0), help="How much is done.")
    @click.option("--total", type=click.IntRange(min=0), help="How much there is to do.")
    @click.option("--unit", default="", help="What is counted, such as files.")
    @click.option("--message", default="", help="What is being done now, for people.")
    @metadata_option
    @functools.wraps(command)
    def with_news(
        connection: Connection,
        output: Output,
        lease_token_file: Path | None,
        done: int | None,
        total: int | None,
        unit: str,
        message: str,
        metadata: str | None,
        **others: Any,
    ) -> Any:
        news = RenewRequest(metadata=output.payloads.from_json("--metadata", metadata))
        if done is not None or total is not None or unit or message:
            news.progress.CopyFrom(
                Progress(done=done or 0, total=total or 0, unit=unit, message=message)
            )
        return command(connection, output, token_file=lease_token_file, news=news, **others)

    return with_news  # type: ignore[return-value] # click calls it with the options by name


@click.command("start")
@server_options()
@output_options
@click.option("--description", default="", help="What the work is, for people.")
@click.option("--parent", default="", help="Parent of the operation, such as folders/b1g….")
@click.option(
    "--method", default="", help="Method whose call started the work, such as a.v1.B.Create."
)
@click.option("--created-by", default="", help="User for whom the work is done.")
@click.option(
    "--cancel-policy",
    type=click.Choice([each.lower() for each in CancelPolicy.keys()[1:]]),
    default="immediate",
    show_default=True,
    help="What Cancel does: end the operation at once, ask its producer to end it, or nothing.",
)
@click.option(
    "--lease",
    type=Duration(),
    help="End the operation when it was not renewed for this time. Needs a lease token.",
)
@_lease_token_option
@click.option("--operation-timeout", type=Duration(), help="End the operation after this time.")
@click.option("--retention", type=Duration(), help="Keep the operation this long after it is done.")
@click.option(
    "--idempotency-key",
    default="",
    help="With the same key, the same call returns the same operation.",
)
@click.option("--id-prefix", default="", help="First 3 characters of the id.")
@labels_option
@metadata_option
@click.option("-q", "--quiet", is_flag=True, help="Print only the id.")
def start_command(
    connection: Connection,
    output: Output,
    cancel_policy: str,
    lease: int | None,
    lease_token_file: Path | None,
    operation_timeout: int | None,
    retention: int | None,
    labels: tuple[str, ...],
    metadata: str | None,
    quiet: bool,
    **texts: str,
) -> None:
    """Start an operation. End it later with `complete` or `fail`, here or in another program.

    \b
    id=$(opservice start --quiet --description 'Nightly backup' --operation-timeout 2h)
    if backup; then opservice complete "$id"; else opservice fail "$id" --code INTERNAL; fi
    opservice start --metadata '{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"}'
    """
    request = StartRequest(
        description=texts["description"],
        parent=texts["parent"],
        method=texts["method"],
        created_by=texts["created_by"],
        idempotency_key=texts["idempotency_key"],
        id_prefix=texts["id_prefix"],
        labels=labels_of(labels),
        cancel_policy=CancelPolicy.Value(cancel_policy.upper()),
        lease=_duration(lease),
        lease_token=_lease_token(lease_token_file),
        timeout=_duration(operation_timeout),
        retention=_duration(retention),
        metadata=output.payloads.from_json("--metadata", metadata),
    )
    output.started(_called(connection, connection.producer.Start, request), quiet=quiet)


def labels_of(given: tuple[str, ...]) -> dict[str, str]:
    """What `labels_option` was given. Raises UsageError."""
    labels: dict[str, str] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise click.BadParameter(f"{each!r}: expected KEY=VALUE", param_hint="'--label'")
        if key in labels:
            raise click.BadParameter(f"{key} is given twice", param_hint="'--label'")
        labels[key] = value
    return labels


@click.command("renew")
@click.argument("id_", metavar="ID", envvar="OPSERVICE_OPERATION_ID")
@_renewal_options
def renew_command(
    connection: Connection, output: Output, id_: str, token_file: Path | None, news: RenewRequest
) -> None:
    """Renew the lease of an operation: say that its work goes on.

    For a script that does the work itself and calls this three times in each lease. Progress may go along.
    `opservice run` renews the lease on its own.

    The exit code is 4 when a cancel of the operation was requested: stop the work, and end the operation.

    \b
    opservice renew ops3f1…
    opservice renew ops3f1… --done 3 --total 10 --unit files
    """
    _renew(connection, output, id_, token_file, news)


@click.command("report")
@click.argument("id_", metavar="ID", envvar="OPSERVICE_OPERATION_ID")
@_renewal_options
def report_command(
    connection: Connection, output: Output, id_: str, token_file: Path | None, news: RenewRequest
) -> None:
    """Report the progress of an operation: show people how far its work is.

    Replaces the progress that was reported before, and renews the lease as `opservice renew` does. A
    command that `opservice run` runs needs neither the ID nor the lease token: they are in its environment.

    The exit code is 4 when a cancel of the operation was requested: stop the work, and end the operation.

    \b
    opservice report ops3f1… --done 3 --total 10 --unit files
    opservice run -- sh -c 'opservice report --message "Dumping"; pg_dump --file backup.sql production'
    """
    if news == RenewRequest():
        raise click.UsageError("nothing to report: give --done, --total, --message or --metadata")
    _renew(connection, output, id_, token_file, news)


@click.command("complete")
@click.argument("id_", metavar="ID")
@server_options()
@output_options
@_lease_token_option
@click.option(
    "--response",
    metavar="JSON",
    help="The result, " + _PAYLOAD + " Default: google.protobuf.Empty.",
)
@metadata_option
def complete_command(
    connection: Connection,
    output: Output,
    id_: str,
    lease_token_file: Path | None,
    response: str | None,
    metadata: str | None,
) -> None:
    """End an operation with a response.

    \b
    opservice complete ops3f1…
    opservice complete ops3f1… --response @registry.json --descriptor-set registry.pb
    """
    request = CompleteRequest(
        operation_id=id_,
        lease_token=_lease_token(lease_token_file),
        response=output.payloads.from_json("--response", response),
        metadata=output.payloads.from_json("--metadata", metadata),
    )
    output.operations([_called(connection, connection.producer.Complete, request)], many=False)


@click.command("fail")
@click.argument("id_", metavar="ID")
@server_options()
@output_options
@_lease_token_option
@click.option(
    "--code",
    required=True,
    type=click.Choice(Code.keys()[1:], case_sensitive=False),
    help="The code of the error (google.rpc.Code).",
)
@click.option("--message", default="", help="The reason, for people.")
@metadata_option
def fail_command(
    connection: Connection,
    output: Output,
    id_: str,
    lease_token_file: Path | None,
    code: str,
    message: str,
    metadata: str | None,
) -> None:
    """End an operation with an error.

    \b
    opservice fail ops3f1… --code NOT_FOUND --message 'There is no image 7'
    """
    request = FailRequest(
        operation_id=id_,
        lease_token=_lease_token(lease_token_file),
        error=Status(code=Code.Value(code), message=message),
        metadata=output.payloads.from_json("--metadata", metadata),
    )
    output.operations([_called(connection, connection.producer.Fail, request)], many=False)


def _renew(
    connection: Connection,
    output: Output,
    id_: str,
    token_file: Path | None,
    news: RenewRequest,
) -> None:
    news.operation_id = id_
    news.lease_token = _lease_token(token_file)
    answer = _called(connection, connection.producer.Renew, news)
    output.renewed(answer)
    if answer.cancel_requested:
        click.get_current_context().exit(Exit.CANCELLED)


def _called(
    connection: Connection,
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
) -> Response:
    """Raises CommandFailed."""
    try:
        return connection.call(method, request)
    except grpc.RpcError as error:
        raise connection.failed(error) from error


def _duration(microseconds: int | None) -> DurationPb | None:
    if microseconds is None:
        return None
    duration = DurationPb()
    duration.FromMicroseconds(microseconds)
    return duration


def _lease_token(file: Path | None) -> str:
    return read_secret(file) if file else environ.get("OPSERVICE_LEASE_TOKEN", "")
