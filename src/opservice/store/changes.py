"""Waking those who follow an operation when it changes.

What this process changes is told to its followers at once, with no query. What another process changes
is noticed by its hint (store/hints.py) or, should that be lost, by a poll; then the operation is read
once for all who follow it. Hints and polls only say where to look: a lost or false one costs time,
never a wake-up, and what followers are told is always what was read after the commit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress

import structlog

from opservice.domain.errors import OperationNotFound, OpserviceError, ServerStopping, StoreError
from opservice.domain.operation import SECOND, Record

log = structlog.stdlib.get_logger("opservice.changes")

Find = Callable[[str], Awaitable[Record]]
"""Reads an operation, or raises OperationNotFound or a StoreError."""

Revisions = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]
"""Reads the revisions of those of these operations that exist, in one query."""

Hints = Callable[[], AsyncGenerator[Sequence[str] | None]]
"""Yields the ids of operations that another process changed, or None when any may have changed; raises
a StoreError when it cannot go on, and may be called again."""

_LINGER_SECONDS = 30
"""How long the watch for other processes' changes goes on without followers: waits come in series."""

_POLL_SHARE = 10
"""A poll that a hint asks for waits so many times as long as the one before it took."""

_RETRY_SECONDS = 1
"""Between two attempts to get hints."""


class Follower:
    """One who follows an operation. `known` is the newest revision that it was told of."""

    __slots__ = ("_created_at", "_news", "_sleeper", "known")

    def __init__(self) -> None:
        self.known = 0
        self._created_at: int | None = None
        self._news: Record | OpserviceError | None = None
        self._sleeper: asyncio.Future[None] | None = None

    def tell(self, record: Record) -> None:
        """Passes on a record that is newer than those it knows; others are dropped."""
        if self._created_at is None:
            self._created_at = record.created_at
        if record.created_at > self._created_at:
            # Its idempotency key came again after the operation that is followed was deleted.
            self.end(OperationNotFound(record.id))
        elif record.created_at == self._created_at and record.revision > self.known:
            self.known = record.revision
            self._wake(record)

    def end(self, error: OpserviceError) -> None:
        """The next `next` raises this, unless the operation's end is there to be told."""
        if not (isinstance(self._news, Record) and self._news.done):
            self._wake(error)

    async def next(self) -> Record:
        """The newest record, once there is one that this has not returned yet."""
        while self._news is None:
            self._sleeper = asyncio.get_running_loop().create_future()
            await self._sleeper
        if isinstance(self._news, OpserviceError):
            raise self._news
        record, self._news = self._news, None
        return record

    def _wake(self, news: Record | OpserviceError) -> None:
        if isinstance(self._news, OpserviceError):
            return
        self._news = news
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)


class Changes:
    """The followers of this process. `interval` is microseconds between two polls."""

    def __init__(self, find: Find, revisions: Revisions, hints: Hints, interval: int) -> None:
        self._find = find
        self._revisions = revisions
        self._hints = hints
        self._interval = interval / SECOND
        self._followers: dict[str, set[Follower]] = {}
        self._hinted: set[str] = set()
        self._anything = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def subscribe(self, operation_id: str) -> Iterator[Follower]:
        """Subscribe first, then read and `tell`, then wait: so no change is missed in between."""
        follower = Follower()
        if self._closed:
            follower.end(ServerStopping())
        elif self._watch is None:
            self._watch = asyncio.create_task(self._watch_others())
        self._followers.setdefault(operation_id, set()).add(follower)
        try:
            yield follower
        finally:
            followers = self._followers[operation_id]
            followers.remove(follower)
            if not followers:
                del self._followers[operation_id]

    def publish(self, record: Record) -> None:
        """Tells the followers of a record that was just committed."""
        for follower in self._followers.get(record.id, ()):
            follower.tell(record)

    def hint(self, operation_ids: Iterable[str]) -> None:
        """Reads those of these operations that are followed, and tells their followers."""
        self._hinted.update(id_ for id_ in operation_ids if id_ in self._followers)
        if self._hinted and self._reader is None and not self._closed:
            self._reader = asyncio.create_task(self._read_hinted())

    def close(self) -> None:
        """Ends whoever follows now, or will."""
        self._closed = True
        for task in (self._watch, self._reader):
            if task is not None:
                task.cancel()
        for followers in self._followers.values():
            for follower in followers:
                follower.end(ServerStopping())

    async def _read_hinted(self) -> None:
        try:
            # An operation that is hinted while it is being read is read again.
            while self._hinted:
                ids = [*self._hinted]
                self._hinted.clear()
                found = await asyncio.gather(*map(self._find, ids), return_exceptions=True)
                for id_, record in zip(ids, found, strict=True):
                    for follower in self._followers.get(id_, ()):
                        if isinstance(record, Record):
                            follower.tell(record)
                        elif isinstance(record, OperationNotFound):
                            follower.end(OperationNotFound(id_))
                        # Whatever else it was: the next poll looks again.
        finally:
            self._reader = None

    async def _watch_others(self) -> None:
        listening = asyncio.create_task(self._listen())
        try:
            await self._poll()
        finally:
            self._watch = None
            listening.cancel()

    async def _listen(self) -> None:
        lost = False
        while True:
            try:
                async with aclosing(self._hints()) as hints:
                    async for ids in hints:
                        if lost:
                            log.info("hints are back")
                            lost = False
                        if ids is None:
                            self._anything.set()
                        else:
                            self.hint(ids)
            except StoreError as error:
                if not lost:
                    log.warning("hints are lost, polls go on", cause=str(error.__cause__ or error))
                lost = True
            except Exception:  # whatever it is, hints should come back
                log.exception("hints failed, polls go on")
            await asyncio.sleep(_RETRY_SECONDS * random.uniform(0.5, 1))

    async def _poll(self) -> None:
        """Polls every interval, and sooner when anything may have changed; ends without followers."""
        loop = asyncio.get_running_loop()
        allowed = loop.time()
        due = allowed + self._interval
        until = allowed + _LINGER_SECONDS
        while loop.time() < until:
            await asyncio.sleep(allowed - loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._anything.wait()
            self._anything.clear()
            started = loop.time()
            if self._followers:
                until = started + _LINGER_SECONDS
                await self._look()
            took = loop.time() - started
            due = max(started + self._interval, loop.time() + took)
            allowed = min(due, loop.time() + _POLL_SHARE * took)

    async def _look(self) -> None:
        """One poll: reads the revisions of all that is followed, hints at those that are news."""
        known: dict[str, int] = {}
        for id_, followers in self._followers.items():
            # Who knows nothing yet is about to read.
            oldest = min((each.known for each in followers if each.known), default=0)
            if oldest:
                known[id_] = oldest
        if not known:
            return
        try:
            revisions = await self._revisions([*known])
        except StoreError as error:
            log.warning("poll failed", cause=str(error.__cause__ or error))
        except Exception:  # whatever it is, who follows must not be forgotten
            log.exception("poll failed")
        else:
            self.hint(id_ for id_, revision in known.items() if revisions.get(id_) != revision)
