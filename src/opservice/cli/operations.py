"""`opservice get`, `list`, `cancel` and `delete`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
import grpc

from opservice._proto.opservice.v1 import operation_record_service_pb2 as pb
from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import CancelOperationRequest
from opservice.cli.connection import Calls, Connection
from opservice.cli.output import Output, output_options
from opservice.cli.target import server_options
from opservice.common.plain import plain
from opservice.methods.validation import MAX_IDS

_PAGE = 500
_ALL_PARENTS = "-"

ids_argument = click.argument("ids", nargs=-1, required=True, metavar="ID...")


@click.command("get")
@ids_argument
@server_options()
@output_options
def get_command(connection: Connection, output: Output, ids: tuple[str, ...]) -> None:
    """Show operations.

    The exit code is 0 when every operation could be shown, whether it runs, succeeded or failed. To get an
    exit code that says how an operation ended, use `wait`.

    \b
    opservice get ops3f1…
    opservice get ops3f1… --format json | jq .operation.response
    opservice get $(opservice list -q --running)
    """
    calls = Calls(connection)
    unique = list(dict.fromkeys(ids))
    records = []
    for start in range(0, len(unique), MAX_IDS):
        records += _get(connection, calls, unique[start : start + MAX_IDS])
    output.records(records, many=len(unique) > 1)
    calls.exit()


def _get(connection: Connection, calls: Calls, ids: Sequence[str]) -> list[OperationRecord]:
    """Those of the operations that can be shown; says what is wrong with the others."""
    if len(ids) == 1:
        record = calls.call(
            connection.records.Get, pb.GetOperationRecordRequest(operation_id=ids[0])
        )
        return [] if record is None else [record]
    try:
        answer = calls.call(
            connection.records.BatchGet,
            pb.BatchGetOperationRecordsRequest(operation_ids=ids),
            raising=grpc.StatusCode.INVALID_ARGUMENT,
        )
    except grpc.RpcError:  # one of them is no id, or their records are too large for one answer
        half = len(ids) // 2
        return _get(connection, calls, ids[:half]) + _get(connection, calls, ids[half:])
    if answer is None:
        return []
    for id_ in answer.not_found_ids:
        calls.say(connection.not_found(id_))
    return list(answer.operation_records)


@click.command("list")
@server_options()
@output_options
@click.option("--parent", default="", help="List the operations of this parent.")
@click.option(
    "--all-parents", is_flag=True, help="List the operations of all parents, and those without one."
)
@click.option(
    "--filter",
    "filter_",
    default="",
    metavar="FILTER",
    help="List only what matches, such as 'done = false' (AIP-160).",
)
@click.option("--running", is_flag=True, help="List only operations that are not done.")
@click.option("--limit", type=click.IntRange(min=1), help="List at most this many.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
def list_command(
    connection: Connection,
    output: Output,
    parent: str,
    all_parents: bool,
    filter_: str,
    running: bool,
    limit: int | None,
    quiet: bool,
) -> None:
    """List operations, newest first.

    Without --parent and --all-parents, lists the operations that have no parent.

    \b
    opservice list --all-parents --running
    opservice list --all-parents --limit 20
    opservice list --parent folders/b1g… --filter 'done = false'
    opservice list --filter 'error.code = 5' --format json | jq -r '.[].operation.id'
    opservice cancel $(opservice list -q --running --filter 'created_by = "me"')
    """
    parent = parent_of(parent, all_parents)
    if running:
        filter_ = f"({filter_}) AND done = false" if filter_.strip() else "done = false"
    request = pb.ListOperationRecordsRequest(parent=parent, filter=filter_)
    pages = _pages(connection, request, limit)
    if quiet:
        for page in pages:
            output.ids(page)
        return
    if output.pages(pages) == 0 and output.format == "table":
        click.echo(_nothing_found(parent, all_parents), err=True)


def parent_of(parent: str, all_parents: bool) -> str:
    """As a request names it. Raises UsageError when both are given."""
    if all_parents and parent:
        raise click.UsageError("give either --parent or --all-parents")
    return _ALL_PARENTS if all_parents else parent


def _nothing_found(parent: str, all_parents: bool) -> str:
    if all_parents:
        return "No operations were found."
    where = f"in {plain(parent)}" if parent else "without a parent"
    return f"No operations {where} were found. To list those of all parents, give --all-parents."


def _pages(
    connection: Connection, request: pb.ListOperationRecordsRequest, limit: int | None
) -> Iterator[list[OperationRecord]]:
    """Raises CommandFailed."""
    left = limit
    while True:
        request.page_size = _PAGE if left is None else min(left, _PAGE)
        try:
            answer = connection.call(connection.records.List, request)
        except grpc.RpcError as error:
            raise connection.failed(error) from error
        page = list(answer.operation_records)[:left]
        yield page
        if left is not None:
            left -= len(page)
        if not answer.next_page_token or left == 0:
            return
        request.page_token = answer.next_page_token


@click.command("cancel")
@ids_argument
@server_options()
@output_options
def cancel_command(connection: Connection, output: Output, ids: tuple[str, ...]) -> None:
    """Cancel operations.

    The exit code is 0 when the server accepted every request. A cooperative operation is then "cancelling":
    its producer ends it, and it may still succeed. Use `wait` to see how it ends. A done operation stays as
    it is.

    \b
    opservice cancel ops3f1…
    """
    calls = Calls(connection)
    cancelled = []
    for id_ in dict.fromkeys(ids):
        operation = calls.call(
            connection.operations.Cancel, CancelOperationRequest(operation_id=id_)
        )
        if operation is not None:
            cancelled.append(operation)
    output.operations(cancelled, many=len(set(ids)) > 1)
    calls.exit()


@click.command("delete")
@ids_argument
@server_options()
def delete_command(connection: Connection, ids: tuple[str, ...]) -> None:
    """Delete operations that are done.

    The server refuses to delete an operation that is running. Cancel it first.

    \b
    opservice delete ops3f1…
    """
    calls = Calls(connection)
    for id_ in dict.fromkeys(ids):
        request = pb.DeleteOperationRecordRequest(operation_id=id_)
        if calls.call(connection.records.Delete, request) is not None:
            click.echo(f"{id_}  deleted")
    calls.exit()
