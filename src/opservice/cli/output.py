"""What a command prints: tables for people, JSON or YAML for programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import yaml
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.producer_service_pb2 import RenewResponse, StartResponse
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.cli.connection import Connection
from opservice.cli.payloads import Payloads
from opservice.cli.tables import (
    json_text,
    print_card,
    print_event,
    print_line,
    print_removed,
    print_table,
    print_text,
)

Command = TypeVar("Command", bound=Callable[..., Any])
Format = Literal["table", "json", "yaml"]


class Output:
    """Standard output in one format. `payloads` knows the types inside `Any`."""

    def __init__(self, format_: Format, payloads: Payloads) -> None:
        self.format = format_
        self.payloads = payloads

    def records(self, records: Sequence[OperationRecord], *, many: bool) -> None:
        """Prints a table or an array if `many` were asked for, otherwise everything about the one."""
        if many and (records or self.format != "table"):
            self.pages([records])
        elif self.format != "table":
            for record in records:
                self._print(self._record(record))
        else:
            for record in records:
                print_card(record, self._operation(record.operation))

    def pages(self, pages: Iterable[Sequence[OperationRecord]]) -> int:
        """Prints a table or an array as its pages arrive. Returns how many records it printed."""
        if self.format != "table":
            return self._print_array(self._record(record) for page in pages for record in page)
        count = 0
        for page in pages:
            if page:
                print_table(page, header=count == 0)
            count += len(page)
        return count

    def ids(self, records: Iterable[OperationRecord]) -> None:
        for record in records:
            print_text(record.operation.id)

    def operations(self, operations: Sequence[Operation], *, many: bool) -> None:
        """Prints what Cancel, Complete or Fail returned, one line for each operation."""
        if self.format == "table":
            for operation in operations:
                print_line(operation, cancelling=True)  # unless it is done
        elif many:
            self._print_array(self._operation(operation) for operation in operations)
        else:
            for operation in operations:
                self._print(self._operation(operation))

    def started(self, answer: StartResponse, *, quiet: bool) -> None:
        if quiet:
            print_text(answer.operation.id)
        elif self.format == "table":
            print_line(answer.operation)
        else:
            # The id, the description and their like stand in the operation.
            record = MessageToDict(answer.record)
            operation = self._operation(answer.operation)
            self._print({"operation": operation, "owned": answer.owned, "record": record})

    def renewed(self, answer: RenewResponse) -> None:
        if self.format == "table":
            print_line(answer.operation, cancelling=answer.cancel_requested)
        else:
            bare = RenewResponse()
            bare.CopyFrom(answer)
            bare.ClearField("operation")
            shown = MessageToDict(bare, always_print_fields_with_no_presence=True)
            self._print({"operation": self._operation(answer.operation), **shown})

    def event(self, record: OperationRecord, *, many: bool) -> None:
        """Prints one state of a watched operation, as a line or a document; `many` are watched."""
        if self.format == "table":
            print_event(record, named=many)
        else:
            self._print_event(self._record(record))

    def removed(self, operation_id: str) -> None:
        """Prints that one of the watched operations is not there any more."""
        if self.format == "table":
            print_removed(operation_id)
        else:
            self._print_event({"removedId": operation_id})

    def _print_event(self, value: Any) -> None:
        if self.format == "json":
            click.echo(json_text(value, indent=None))
        else:
            click.echo("---\n" + _yaml(value), nl=False)

    def _print(self, value: Any) -> None:
        if self.format == "yaml":
            click.echo(_yaml(value), nl=False)
        else:
            click.echo(json_text(value, indent=2))

    def _print_array(self, values: Iterator[Any]) -> int:
        """Prints each value as soon as it arrives. Returns how many it printed."""
        count = 0
        for count, value in enumerate(values, 1):
            if self.format == "yaml":
                click.echo(_yaml([value]), nl=False)
            else:
                item = json_text(value, indent=2).replace("\n", "\n  ")
                click.echo(("[\n  " if count == 1 else ",\n  ") + item, nl=False)
        if count == 0:
            click.echo("[]")
        elif self.format == "json":
            click.echo("\n]")
        return count

    def _record(self, record: OperationRecord) -> dict[str, Any]:
        bare = OperationRecord()
        bare.CopyFrom(record)
        bare.ClearField("operation")
        return {"operation": self._operation(record.operation), **MessageToDict(bare)}

    def _operation(self, operation: Operation) -> dict[str, Any]:
        """protobuf's JSON, but that a type unknown inside an Any is no error."""
        bare = Operation()
        bare.CopyFrom(operation)
        for field in ("metadata", "error", "response"):
            bare.ClearField(field)
        shown = dict(MessageToDict(bare))
        if operation.HasField("metadata"):
            shown["metadata"] = self.payloads.to_json(operation.metadata)
        if operation.HasField("error"):
            shown["error"] = self._status(operation.error)
        if operation.HasField("response"):
            shown["response"] = self.payloads.to_json(operation.response)
        return shown

    def _status(self, status: Status) -> dict[str, Any]:
        shown = dict(MessageToDict(Status(code=status.code, message=status.message)))
        if status.details:
            shown["details"] = [self.payloads.to_json(detail) for detail in status.details]
        return shown


def output_options(command: Command) -> Command:
    """--format and --descriptor-set: the Output that a command gets after its Connection."""

    @click.option(
        "--format",
        "format_",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="Output format. json and yaml have the field names of protobuf's JSON mapping.",
    )
    @click.option(
        "--descriptor-set",
        multiple=True,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        envvar="OPSERVICE_DESCRIPTOR_SET",
        show_envvar=True,
        help="FileDescriptorSet with more types to show as JSON inside Any, besides those that the"
        " server knows. Made by protoc --include_imports -o FILE. May be repeated.",
    )
    @functools.wraps(command)
    def with_output(
        connection: Connection, format_: Format, descriptor_set: tuple[Path, ...], **others: Any
    ) -> Any:
        payloads = Payloads(connection, descriptor_set)
        return command(connection, Output(format_, payloads), **others)

    return with_output  # type: ignore[return-value] # click calls it with the options by name


def _yaml(value: Any) -> str:
    """Letters as they are, unless that would let through what a terminal could obey."""
    text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    if not text.replace("\n", "").isprintable():
        text = yaml.safe_dump(value, allow_unicode=False, sort_keys=False)
    return text
