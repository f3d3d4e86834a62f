"""Waking those who follow an operation when it changes.

A change made by this process is signalled at once. One made by another replica is found by polling,
for all followed operations together. Either is only a hint: who is woken reads for himself, so a hint
that is lost or false costs time, never a wake-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from opservice.errors import StoreError
from opservice.operation import SECOND

log = structlog.stdlib.get_logger("opservice.changes")

Revisions = Callable[[list[str]], Awaitable[Mapping[str, int]]]
"""Reads the revisions of those of these operations that exist."""


class Signal:
    """One follower's: set when the operation may have a revision other than the one it has seen."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.seen = 0

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


class Changes:
    """The followers of this process. `interval` is microseconds between two polls."""

    def __init__(self, revisions: Revisions, interval: int) -> None:
        self._revisions = revisions
        self._interval = interval
        self._signals: dict[str, set[Signal]] = {}
        self._poller: asyncio.Task[None] | None = None
        self.closed = False

    @contextmanager
    def subscribe(self, operation_id: str) -> Iterator[Signal]:
        """Subscribe first, then read, then wait: so no change is missed in between."""
        signal = Signal()
        self._signals.setdefault(operation_id, set()).add(signal)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            yield signal
        finally:
            followers = self._signals[operation_id]
            followers.remove(signal)
            if not followers:
                del self._signals[operation_id]

    def notify(self, operation_ids: Iterable[str]) -> None:
        for operation_id in operation_ids:
            for signal in self._signals.get(operation_id, ()):
                signal.set()

    def close(self) -> None:
        """Wakes everybody for the last time; they look at `closed`."""
        self.closed = True
        self.notify(list(self._signals))
        if self._poller is not None:
            self._poller.cancel()

    async def _poll(self) -> None:
        try:
            while self._signals:
                await asyncio.sleep(self._interval / SECOND)
                try:
                    revisions = await self._revisions(list(self._signals))
                except StoreError as error:
                    log.warning("poll failed", cause=str(error.__cause__ or error))
                    continue
                except Exception:  # whatever it is, who follows must not be forgotten
                    log.exception("poll failed")
                    continue
                for operation_id, followers in self._signals.items():
                    revision = revisions.get(operation_id)
                    for signal in followers:
                        if signal.seen != revision:
                            signal.set()
        finally:
            self._poller = None
