"""Which operations of the server in memory have changed, and in which order: for who follows many."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """That an operation was started, was changed or is gone. A later change has a greater number.

    The number is when it happened, in microseconds since the epoch, or slightly later.
    """

    number: int
    operation_id: str
    parent: str


class Changes:
    """The last one of each operation, also of those that are gone."""

    def __init__(self, now: Callable[[], int]) -> None:
        """`now` tells the time in microseconds since the epoch."""
        self._now = now
        self._newest: int = 0
        self._by_id: dict[str, Change] = {}
        """The oldest first."""
        self.next: asyncio.Event = asyncio.Event()
        """Set at the next change, when another one takes its place."""

    def note(self, operation_id: str, parent: str) -> None:
        """Notes that the operation has just changed."""
        self._newest = max(self._now(), self._newest + 1)
        self._by_id.pop(operation_id, None)
        self._by_id[operation_id] = Change(self._newest, operation_id, parent)
        noted, self.next = self.next, asyncio.Event()
        noted.set()

    def clock(self) -> int:
        """At least the number of each change until now, and less than that of each later one."""
        self._newest = max(self._now(), self._newest)
        return self._newest

    def after(self, number: int) -> list[Change]:
        """Those with greater numbers, the oldest first."""
        newest_first = reversed(self._by_id.values())
        found = [*itertools.takewhile(lambda change: change.number > number, newest_first)]
        return found[::-1]

    def last_of(self, operation_id: str) -> int:
        """The number of its last change; 0 when there never was such an operation."""
        change = self._by_id.get(operation_id)
        return 0 if change is None else change.number
