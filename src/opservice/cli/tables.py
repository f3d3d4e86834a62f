"""Operations as people read them: tables, cards and lines, coloured on a terminal."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable
from typing import Any, Literal

import click
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, OperationRecord
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.common.plain import plain

State = Literal["running", "cancelling", "done", "failed", "cancelled"]

_STYLES: dict[State, str] = {
    "running": "cyan",
    "cancelling": "yellow",
    "done": "green",
    "failed": "red",
    "cancelled": "yellow",
}
_COLUMNS = {"ID": 20, "STATUS": 10, "AGE": 3, "METHOD": None, "DESCRIPTION": None, "PROGRESS": None}
"""With the least width of those that are never cut off, so that the pages of a list look alike."""
_PIPED_WIDTH = 1_000_000
_LABEL_WIDTH = 13
_AGE_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))


def state_of(operation: Operation, *, cancelling: bool = False) -> State:
    """A server may hide the error until it is done: then `cancelling` says that Cancel was called."""
    if not operation.done:
        return "cancelling" if cancelling or operation.HasField("error") else "running"
    if not operation.HasField("error"):
        return "done"
    return "cancelled" if operation.error.code == Code.CANCELLED else "failed"


def state_of_record(record: OperationRecord) -> State:
    return state_of(record.operation, cancelling=record.HasField("cancel_requested_at"))


def progress_of(record: OperationRecord) -> str:
    """How far it has come, or why it ended, in one line."""
    operation = record.operation
    if operation.done:
        return _error_line(operation.error) if operation.HasField("error") else ""
    progress = record.progress
    words = [progress.message]
    if progress.done or progress.total:
        total = f"/{progress.total}" if progress.total else ""
        words = [f"{progress.done}{total}", progress.unit, progress.message]
    return plain(" ".join(filter(None, words)))


def print_table(records: Iterable[OperationRecord], *, header: bool = True) -> None:
    table = Table(box=None, pad_edge=False, show_header=header, header_style="bold")
    for name, width in _COLUMNS.items():
        table.add_column(name, no_wrap=width is not None, min_width=width)
    for record in records:
        operation = record.operation
        table.add_row(
            Text(plain(operation.id)),
            _state_text(state_of_record(record)),
            Text(_age(operation.created_at)),
            *(
                Text(text, no_wrap=True, overflow="ellipsis")
                for text in (
                    plain(record.method),
                    plain(operation.description),
                    progress_of(record),
                )
            ),
        )
    console = _console()
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def print_card(record: OperationRecord, shown: dict[str, Any]) -> None:
    """Everything about one operation; `shown` is its `operation` in JSON."""
    operation = record.operation
    card = Text()

    def add(label: str, value: str | Text) -> None:
        if value:
            card.append(f"{label:{_LABEL_WIDTH}}", "bold")
            card.append(value)
            card.append("\n")

    add("ID", plain(operation.id))
    add("Status", _state_text(state_of_record(record)))
    add("Error", _error_line(operation.error) if operation.HasField("error") else "")
    add("Progress", "" if operation.done else progress_of(record))
    add("Description", plain(operation.description))
    add("Method", plain(record.method))
    add("Parent", plain(record.parent))
    add("Created", f"{_time(operation.created_at)} ({_age(operation.created_at)} ago)")
    add("Created by", plain(operation.created_by))
    add("Producer", plain(record.producer))
    add("Labels", ", ".join(plain(f"{key}={record.labels[key]}") for key in sorted(record.labels)))
    add("Modified", _time(operation.modified_at))
    add("Cancel", _policy(record))
    add("Lease until", _time_of(record, "lease_expires_at"))
    add("Timeout at", _time_of(record, "timeout_at"))
    add("Kept until", _time_of(record, "expires_at"))
    add("Trace", plain(record.traceparent))
    add("Metadata", _indented(shown.get("metadata")))
    add("Response", _indented(shown.get("response")))
    add("Details", _indented(shown.get("error", {}).get("details")))
    _console().print(card, end="", soft_wrap=True)


def print_line(operation: Operation, *, cancelling: bool = False) -> None:
    """Its id and its state."""
    line = Text(plain(operation.id) + "  ").append_text(
        _state_text(state_of(operation, cancelling=cancelling))
    )
    _console().print(line, soft_wrap=True)


def print_event(record: OperationRecord, *, named: bool) -> None:
    """One state of an operation that is being watched; `named` when it is one of several."""
    operation = record.operation
    line = Text(_time(operation.modified_at) + "  ")
    if named:
        line.append(plain(operation.id) + "  ")
    line.append_text(_state_text(state_of_record(record)))
    what = plain(operation.description) if named else ""
    line.append("".join(f"  {text}" for text in (progress_of(record), what) if text))
    _console().print(line, soft_wrap=True)


def print_removed(operation_id: str) -> None:
    """Of an operation that was watched among others. The time is that of this machine."""
    now = Timestamp()
    now.FromMilliseconds(time.time_ns() // 1_000_000)
    line = Text(f"{_time(now)}  {plain(operation_id)}  ")
    _console().print(line.append("removed", "dim"), soft_wrap=True)


def print_text(text: str) -> None:
    _console().print(Text(text), soft_wrap=True)


def json_text(value: Any, indent: int | None) -> str:
    """With letters of any language as they are, but whatever a terminal could obey escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return re.sub(r"[^\n -~]", _escaped, text)


def _escaped(character: re.Match[str]) -> str:
    return character[0] if character[0].isprintable() else json.dumps(character[0])[1:-1]


def _indented(value: Any) -> str:
    if value is None:
        return ""
    return json_text(value, indent=2).replace("\n", "\n" + " " * _LABEL_WIDTH)


def _console() -> Console:
    """Standard output as it is now. Piped it has no colours, and nothing is cut off."""
    return Console(
        file=sys.stdout,
        width=None if sys.stdout.isatty() else _PIPED_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _state_text(state: State) -> Text:
    return Text(state, _STYLES[state])


def _error_line(error: Status) -> str:
    code = Code.Name(error.code) if error.code in Code.values() else str(error.code)
    return plain(f"{code}: {error.message}" if error.message else code)


def _policy(record: OperationRecord) -> str:
    if record.cancel_policy not in CancelPolicy.values() or not record.cancel_policy:
        return ""  # not known: made by Cancel and its like, which do not tell
    policy = CancelPolicy.Name(record.cancel_policy).lower()
    asked = _time_of(record, "cancel_requested_at")
    by = f" by {plain(record.cancelled_by)}" if record.cancelled_by else ""
    return f"{policy}, asked for at {asked}{by}" if asked else policy


def _time_of(record: OperationRecord, field: str) -> str:
    return _time(getattr(record, field)) if record.HasField(field) else ""  # type: ignore[arg-type] # its names are literals


def _time(timestamp: Timestamp) -> str:
    return timestamp.ToJsonString()


def _age(created_at: Timestamp) -> str:
    seconds = max(0, int(time.time()) - created_at.seconds)
    for unit, length in _AGE_UNITS:
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
