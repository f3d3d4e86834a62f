"""Waking those who follow an operation when it changes.

What this process changes is told to its subscribers at once, with no query. What another process changes is
noticed by its notification or, when that is lost, by a poll; then the operation is read once for all who
follow it. Notifications and polls only say where to look: a lost or false one costs time, never a wake-up,
and what subscribers are told is always what was read after the commit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress

from opservice.common.jitter import jitter
from opservice.common.loggers import get_logger
from opservice.common.metrics import HINTS_LOST, HINTS_RECEIVED, WAKE_SECONDS
from opservice.common.tracing import of_no_call
from opservice.domain.errors import OperationNotFound, OpserviceError, ServerStopping, StoreError
from opservice.domain.operation import SECOND, Record
from opservice.store.drivers.protocol import Notifications
from opservice.store.feed import Feed
from opservice.store.following import Follower

log = get_logger("opservice.changes")

Find = Callable[[str], Awaitable[Record]]
"""Reads an operation, or raises OperationNotFound or a StoreError."""

Revisions = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]
"""Reads the revisions of those of these operations that exist, in one query."""

_LINGER_SECONDS = 30
"""How long the watch for other processes' changes goes on without subscriptions: waits come in series."""

_POLL_SHARE = 10
"""A poll that a notification asks for waits so many times as long as the one before it took."""

_RETRY_SECONDS = 1
"""Between two attempts to receive notifications."""


class Subscription:
    """Of one who follows an operation. `known` is the newest revision that it was told of; 0 for none."""

    __slots__ = ("_created_at", "_news", "_sleeper", "_woken_at", "known")

    def __init__(self) -> None:
        self.known = 0
        self._created_at: int | None = None
        self._news: Record | OpserviceError | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._woken_at = 0.0

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
            WAKE_SECONDS.observe(time.perf_counter() - self._woken_at)
        if isinstance(self._news, OpserviceError):
            raise self._news
        record, self._news = self._news, None
        return record

    def _wake(self, news: Record | OpserviceError) -> None:
        if isinstance(self._news, OpserviceError):
            return
        self._news = news
        if self._sleeper is not None and not self._sleeper.done():
            self._woken_at = time.perf_counter()
            self._sleeper.set_result(None)


class Changes:
    """The subscriptions of this process."""

    def __init__(
        self,
        find: Find,
        revisions: Revisions,
        notifications: Notifications | None,
        interval: int,
        feed: Feed,
    ) -> None:
        """`interval` is microseconds between two polls. Without `notifications` there are only polls.

        `feed` looks for changes whenever this does.
        """
        self._find = find
        self._revisions = revisions
        self._notifications = notifications
        self._interval = interval / SECOND
        self._feed = feed
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._suspected: set[str] = set()
        self._anything = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def subscribe(self, operation_id: str) -> Iterator[Subscription]:
        """Subscribe first, then read and `tell`, then wait: so no change is missed in between."""
        subscription = Subscription()
        if self._closed:
            subscription.end(ServerStopping())
        self._begin()
        self._subscriptions.setdefault(operation_id, set()).add(subscription)
        try:
            yield subscription
        finally:
            subscriptions = self._subscriptions[operation_id]
            subscriptions.remove(subscription)
            if not subscriptions:
                del self._subscriptions[operation_id]

    @contextmanager
    def follow_many(self, follower: Follower) -> Iterator[None]:
        """The follower is told of changes during the block."""
        with self._feed.follow(follower):
            self._begin()
            yield

    def _begin(self) -> None:
        if self._watch is None and not self._closed:
            self._watch = asyncio.create_task(self._watch_others(), context=of_no_call())

    def publish(self, record: Record) -> None:
        """Tells the subscriptions of a record that was just committed."""
        self._feed.publish(record)
        for subscription in self._subscriptions.get(record.id, ()):
            subscription.tell(record)

    def look_at(self, operation_ids: Iterable[str]) -> None:
        """Reads those of these operations that are followed, and tells their subscriptions."""
        if self._feed.is_followed:
            self._anything.set()
        self._suspected.update(id_ for id_ in operation_ids if id_ in self._subscriptions)
        if self._suspected and self._reader is None and not self._closed:
            self._reader = asyncio.create_task(self._read_suspected(), context=of_no_call())

    def close(self) -> None:
        """Ends whoever follows now, or will."""
        self._closed = True
        self._feed.close()
        for task in (self._watch, self._reader):
            if task is not None:
                task.cancel()
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.end(ServerStopping())

    async def _read_suspected(self) -> None:
        try:
            # An operation of which that is said while it is being read is read again.
            while self._suspected:
                ids = [*self._suspected]
                self._suspected.clear()
                found = await asyncio.gather(*map(self._find, ids), return_exceptions=True)
                for id_, record in zip(ids, found, strict=True):
                    for subscription in self._subscriptions.get(id_, ()):
                        if isinstance(record, Record):
                            subscription.tell(record)
                        elif isinstance(record, OperationNotFound):
                            subscription.end(OperationNotFound(id_))
                        # Whatever else it was: the next poll looks again.
        finally:
            self._reader = None

    async def _watch_others(self) -> None:
        listening = None
        if self._notifications is not None:
            listening = asyncio.create_task(self._listen(self._notifications))
        try:
            await self._poll()
        finally:
            self._watch = None
            if listening is not None:
                listening.cancel()

    async def _listen(self, notifications: Notifications) -> None:
        lost = False
        while True:
            try:
                async with aclosing(notifications.receive()) as received:
                    async for ids in received:
                        if lost:
                            log.info("notifications are back")
                            lost = False
                        if ids is None:
                            self._anything.set()
                        else:
                            HINTS_RECEIVED.inc(len(ids))
                            self.look_at(ids)
            except StoreError as error:
                if not lost:
                    log.warning(
                        "notifications are lost, polls go on", cause=str(error.__cause__ or error)
                    )
                HINTS_LOST.inc()
                lost = True
            except Exception:  # whatever it is, notifications should come back
                log.exception("notifications failed, polls go on")
            await asyncio.sleep(_RETRY_SECONDS * jitter.uniform(0.5, 1))

    async def _poll(self) -> None:
        """Polls every interval, and sooner when anything may have changed; ends without subscriptions."""
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
            if self._subscriptions or self._feed.is_followed:
                until = started + _LINGER_SECONDS
                await asyncio.gather(self._look(), self._feed.look())
            took = loop.time() - started
            due = max(started + self._interval, loop.time() + took)
            allowed = min(due, loop.time() + _POLL_SHARE * took)

    async def _look(self) -> None:
        """One poll: reads the revisions of all that is followed, and looks at those that are news."""
        known: dict[str, int] = {}
        for id_, subscriptions in self._subscriptions.items():
            # Who knows nothing yet is about to read.
            oldest = min((each.known for each in subscriptions if each.known), default=0)
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
            self.look_at(id_ for id_, revision in known.items() if revisions.get(id_) != revision)
