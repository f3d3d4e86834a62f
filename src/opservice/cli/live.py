"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice.cli.tables import progress_of, state_of_record
from opservice.common.plain import plain


class Bars:
    """A bar for each operation on standard error, gone when it is left."""

    def __init__(self, operation_ids: Sequence[str]) -> None:
        self._progress = Progress(
            _column("{task.fields[operation_id]}"),
            _column("{task.fields[state]}"),
            BarColumn(bar_width=20),
            _column("{task.description}", ratio=1),
            TimeElapsedColumn(),
            console=Console(stderr=True, markup=False, highlight=False, emoji=False),
            transient=True,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {
            id_: self._progress.add_task("", total=None, operation_id=plain(id_), state="…")
            for id_ in operation_ids
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, operation_id: str, record: OperationRecord) -> None:
        what = plain(record.operation.description)
        done, total = record.progress.done, record.progress.total
        if record.operation.done:
            done = total = max(total, 1)
        self._progress.update(
            self._tasks[operation_id],
            completed=done,
            total=total or None,
            description="  ".join(filter(None, (progress_of(record), what))),
            state=state_of_record(record),
        )

    def missing(self, operation_id: str) -> None:
        """Shows that there is no such operation."""
        self._progress.update(self._tasks[operation_id], state="not found")


def _column(text: str, ratio: int | None = None) -> TextColumn:
    column = Column(no_wrap=True, overflow="ellipsis", ratio=ratio)
    return TextColumn(text, markup=False, table_column=column)
