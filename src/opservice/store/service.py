"""The store's face: what the rest of the server asks of it.

Each kind of work has a thread of its own, on which it is done in batches: writes, reads, sweeps, lists, and
what else there is (the clock, checkpoints, notifications). So none of them waits for another kind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from sqlalchemy import Connection

from opservice.common.loggers import get_logger
from opservice.common.metrics import HINTS_LOST, HINTS_SENT, OLDEST_SECONDS, RUNNING
from opservice.common.turns import Turns
from opservice.domain.errors import (
    OperationNotFound,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from opservice.domain.filters import ListQuery
from opservice.domain.operation import (
    SECOND,
    Change,
    Command,
    Delete,
    DeleteExpired,
    Origin,
    Outcome,
    Record,
    Removed,
    Sweep,
    Swept,
)
from opservice.store.batching import Batcher
from opservice.store.cache import MEMORY_BYTES
from opservice.store.changes import Changes, Subscription
from opservice.store.counting import count_outcome, count_swept
from opservice.store.drivers.protocol import Notifications
from opservice.store.engine import Database
from opservice.store.feed import Feed
from opservice.store.following import Event, Follower
from opservice.store.listing import Listed, read_page
from opservice.store.migrations import schema_fault
from opservice.store.reading import Reads
from opservice.store.repository import Repository
from opservice.store.writing import Writer

log = get_logger("opservice.store")


MAX_LISTS = 64
"""Lists that wait for others: each may take a second."""


_UNTOLD_AT_ONCE = 100
"""Changes of which a filter wants none, before other calls get their turn."""


class ProveWrites:
    """Among commands: a write that changes nothing and must become durable as they do."""


class OperationStore:
    """Operations in a database, for many callers at once.

    It belongs to one event loop, which it never keeps waiting. What its methods raise is one of the errors of
    domain/errors.py. StoreError stands for all that can be wrong with the database: StoreUnavailable and
    StoreBusy (try again later), StoreFull, and StoreError itself for what nobody expected.
    """

    def __init__(
        self,
        database: Database,
        repository: Repository,
        poll_interval: int = SECOND,
        *,
        notify: bool = True,
        memory_bytes: int = MEMORY_BYTES,
        resume_window: int = 0,
    ) -> None:
        """Takes over the database, and closes it in the end.

        `poll_interval` is microseconds between two looks for changes that other processes have made and of
        which no notification came. Without `notify` there are no notifications, and only polls.
        `memory_bytes` bounds what is kept of done operations; with 0 every read asks the database.
        `resume_window` is how many microseconds the rows of deleted operations are kept at least. When nobody
        could look for changes for longer, streams of parents end with WatchOutdated. With 0 they never do.
        """
        self._database = database
        self._repository = repository
        self._reads = Reads(database, repository, self._on_hang, memory_bytes)
        self._writer = Writer(database, repository)
        self._writes: Batcher[Command | ProveWrites, Outcome | None] = Batcher(
            "store-write", self._write, after=self._after_write, on_hang=self._on_hang
        )
        self.when_write_fails: Callable[[], object] = lambda: None
        """Called when a write fails for reasons that concern all writes."""
        self._sweeps: Batcher[tuple[Sweep, int | None], Swept] = Batcher(
            "store-sweep", self._sweep, after=self._after_sweep, on_hang=self._on_hang
        )
        # One by one: each may take long, and those whose caller gave up meanwhile are not begun.
        self._lists: Batcher[Callable[[], Any], Any] = Batcher(
            "store-list", _call_each, max_batch=1, on_hang=self._on_hang
        )
        self._turns = Turns(MAX_LISTS)
        # With SQLite, followers look for changes fifty times a second: that is not worth a span each.
        self._asides: Batcher[Callable[[], Any], Any] = Batcher(
            "store-aside", _call_each, on_hang=self._on_hang, traced_alone=False
        )
        self._freeing: asyncio.Task[None] | None = None
        self._notifications: Notifications | None = None
        if notify:
            self._notifications = database.driver.notifications(database.read, self._asides.submit)
        self._feed = Feed(self._read_changes, self.get, self._revisions, resume_window)
        self._changes = Changes(
            self.get, self._revisions, self._notifications, poll_interval, self._feed
        )
        self._to_send: list[str] = []
        self._sender: asyncio.Task[None] | None = None

    async def get(self, operation_id: str) -> Record:
        """The operation, as of some moment after the call; a done one may come from memory (reading.py).

        Raises OperationNotFound, or a StoreError.
        """
        return await self._reads.get(operation_id)

    async def origin(self, operation_id: str, *, remembered: bool = True) -> Record | Origin:
        """Whose the operation is, without its payloads; also when it has expired.

        The record when that is in memory, unless what is `remembered` is not wanted. Raises as `get` does.
        """
        return await self._reads.origin(operation_id, remembered=remembered)

    async def page(self, query: ListQuery, caller: str = "") -> Listed:
        """A page of operations, as of some moment after the call. Callers have their lists by turns.

        Raises ServerBusy when too many others wait for theirs, or a StoreError.
        """
        page = partial(read_page, query=query, visible=self._repository.visible)
        async with self._turns.turn(caller):
            listed: Listed = await self._lists.submit(partial(self._database.read, page))
        return listed

    async def changes(
        self, since: int, after: Change | None, caller: str = "", *, expired: bool
    ) -> tuple[Sequence[Change], Change | None]:
        """A page of all operations that have changed since then; see Repository.changes. By turns, as lists.

        Raises as `page` does.
        """
        page = partial(self._repository.changes, since=since, after=after, expired=expired)
        async with self._turns.turn(caller):
            changes: tuple[Sequence[Change], Change | None]
            changes = await self._lists.submit(partial(self._database.read, page))
        return changes

    async def apply(self, command: Command) -> Outcome:
        """Applies a command; it is durable when this returns.

        Raises what the command is refused with (see errors.py), or a StoreError: then it may or may
        not have happened, and may be repeated.
        """
        outcome = await self._writes.submit(command)
        assert outcome is not None  # only of ProveWrites
        return outcome

    async def prove_writes(self) -> None:
        """Returns once a write that changes nothing is durable, after all that were asked for before.

        Raises a StoreError.
        """
        await self._writes.submit(ProveWrites())

    async def read_clock(self) -> tuple[int, bool]:
        """The database's clock in microseconds since the epoch, and whether anybody may soon be late.

        Somebody may be late when there is a lease, or the like. Done operations are answered from memory only
        after the clock was read. Raises a StoreError.
        """
        began = time.monotonic()
        clock: tuple[int, bool] = await self._asides.submit(self._read_clock)
        self._reads.database_clock_read(clock[0], began)
        return clock

    async def schema_fault(self) -> str | None:
        """What is wrong with the schema, in plain words; else None. Raises a StoreError."""
        fault: str | None = await self._asides.submit(partial(schema_fault, self._database))
        return fault

    async def count_running(self) -> None:
        """Puts into the metrics how many operations run, and the age of the oldest. Raises a StoreError."""
        read = partial(self._database.read, self._repository.count_running)
        count, oldest = await self._asides.submit(read)
        RUNNING.set(count)
        OLDEST_SECONDS.set(oldest / SECOND)

    async def sweep(self, sweep: Sweep, cutoff: int | None = None) -> Swept:
        """Applies a sweep, in a transaction of its own, to what was due by `cutoff`.

        `cutoff` is a reading of the database's clock, in microseconds since the epoch. By default it is read
        before the sweep is sent. Raises a StoreError.
        """
        return await self._sweeps.submit((sweep, cutoff))

    async def checkpoint(self) -> None:
        """Puts what SQLite has in its log into the database file. Raises a StoreError."""
        await self._asides.submit(self._database.checkpoint)

    async def follow(
        self,
        operation_id: str,
        repeat_after: float | None = None,
        attach: Callable[[Subscription], None] | None = None,
    ) -> AsyncGenerator[Record]:
        """The operation as it is, then as it becomes, until it is done.

        States may be skipped, but `revision` never goes back; it stays the same only where the last state is
        repeated, because there was no other for `repeat_after` seconds. `attach` is given the subscription,
        by which others may end this.

        Raises OperationNotFound, also when it is deleted meanwhile, a StoreError, ServerStopping, or what the
        subscription was ended with.
        """
        with self._changes.subscribe(operation_id) as subscription:
            if attach is not None:
                attach(subscription)
            subscription.tell(await self.get(operation_id))
            record = await subscription.next()
            while True:
                yield record
                if record.done:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(repeat_after):
                        record = await subscription.next()

    async def follow_many(
        self,
        follower: Follower,
        read_all: Callable[[int], AsyncGenerator[None]],
        repeat_after: float | None = None,
    ) -> AsyncGenerator[Event]:
        """What `read_all` tells the follower, an event without news, and then what it is told of changes.

        `read_all` is given the database's clock. Whenever it yields, what the follower was told is an event.
        After `repeat_after` seconds without any there is another one without news. It ends when the follower
        has ids, and nothing more is to be told of any.

        Raises a StoreError, ServerStopping, or what the follower was ended with.
        """
        with self._changes.follow_many(follower):
            began = await self._feed.begin()
            follower.begin()
            async with aclosing(read_all(began)) as reading:
                async for _ in reading:
                    while (event := await self._next_event(follower, None)) is not None:
                        yield event
            await self._feed.has_read(follower)
            follower.check()
            follower.caught_up(began)
            yield Event(None, follower.resume_point(), is_last=follower.ids == set())
            due = _due(repeat_after)
            while follower.ids is None or follower.ids:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await follower.sleep()
                while (event := await self._next_event(follower, self._feed.clock)) is not None:
                    yield event
                    due = _due(repeat_after)
                # Also where much has changed of which nothing was to be told.
                if due is not None and due <= asyncio.get_running_loop().time():
                    yield Event(None, follower.resume_point())
                    due = _due(repeat_after)

    async def _next_event(self, follower: Follower, clock: int | None) -> Event | None:
        """None when there is nothing to be told at the moment. Raises what the follower was ended with."""
        untold = 0
        while True:
            follower.check()  # also when nothing is left, because what was not told was forgotten then
            taken = follower.take(clock)
            if taken is None:
                return None
            id_, news = taken
            if news is None:
                try:
                    record = await self.get(id_)
                    news = record if follower.read(record) else Removed(id_)
                except OperationNotFound:
                    news = Removed(id_)
            told = follower.told(news)
            if told is not None:
                return Event(told, follower.resume_point())
            untold += 1
            if untold % _UNTOLD_AT_ONCE == 0:
                await asyncio.sleep(0)

    def tell_gone(self, ends: Iterable[Change]) -> None:
        """Tells whoever follows many operations that these were taken away, other than by `apply`."""
        for end in ends:
            self._feed.publish_gone(end)

    def stop_following(self) -> None:
        """Ends every `follow`, so that clients go on with another replica."""
        self._changes.close()

    async def close(self) -> None:
        """Waits for what was asked for, then closes the database."""
        self.stop_following()
        if self._sender is not None:
            await self._sender
        await self._asides.close()
        await self._lists.close()
        await self._sweeps.close()
        await self._writes.close()
        await self._reads.close()
        if self._freeing is not None:
            self._freeing.cancel()
        self._database.close()

    async def _revisions(self, ids: Sequence[str]) -> dict[str, int]:
        read = partial(self._database.read, partial(self._repository.revisions, ids=ids))
        revisions: dict[str, int] = await self._asides.submit(read)
        return revisions

    async def _read_changes(self, back: int, at_most: int) -> tuple[int, Sequence[Change]]:
        async def read(work: Callable[[Connection], Any]) -> Any:
            return await self._asides.submit(partial(self._database.read, work))

        clock: int = await read(self._repository.read_now)
        since = min(clock - back, at_most)
        found: dict[str, Change] = {}
        for expired in (False, True):
            after: Change | None = None
            while True:  # each page by itself, so that the clock is read between two
                changes = partial(
                    self._repository.changes, since=since, after=after, expired=expired
                )
                page, after = await read(changes)
                found.update((each.id, _as_of(clock, each)) for each in page)
                if after is None:
                    break
        return clock, list(found.values())

    def _notify(self, *operation_ids: str) -> None:
        """What is to be sent while something is being sent goes with the next."""
        if self._notifications is None or not self._notifications.sends:
            return
        self._to_send += operation_ids
        if self._sender is None:
            self._sender = asyncio.create_task(self._send(self._notifications))

    async def _send(self, notifications: Notifications) -> None:
        try:
            while self._to_send:
                ids, self._to_send = self._to_send, []
                try:
                    await notifications.send(ids)
                    HINTS_SENT.inc(len(ids))
                except StoreError as error:
                    HINTS_LOST.inc(len(ids))
                    log.warning("notification not sent", cause=str(error.__cause__ or error))
        finally:
            self._sender = None

    def _on_hang(self, seconds: float) -> None:
        if self._freeing is None:
            # The batch may have done something before its connection froze.
            self._freeing = asyncio.create_task(self._shut_down_frozen(seconds / 2))

    async def _shut_down_frozen(self, seconds: float) -> None:
        """Frees threads that wait for an answer on a connection on which none will come."""
        try:
            ended = await self._database.driver.shut_down_frozen(seconds)
            if ended:
                log.warning("connections to the database were frozen: shut down", count=ended)
        except StoreError as error:
            log.warning("the database hangs", cause=str(error.__cause__ or error))
        except Exception:  # whatever it is, the next hang must be looked at
            log.exception("frozen connections could not be looked for")
        finally:
            self._freeing = None

    def _after_write(
        self, command: Command | ProveWrites, result: Outcome | Exception | None
    ) -> None:
        # StoreBusy and StoreError concern one command.
        if isinstance(result, StoreUnavailable | StoreFull) and not isinstance(result, StoreBusy):
            self.when_write_fails()
        if isinstance(command, ProveWrites):
            return
        if isinstance(result, Outcome) and result.changed:
            count_outcome(command, result.record)
        if isinstance(command, Delete):
            if isinstance(result, Outcome | OperationNotFound):
                self._reads.forget(command.id)
            if isinstance(result, Outcome):
                self._feed.publish_gone(Change.end_of(result.record))
        elif isinstance(result, Outcome):
            record = result.record
            self._changes.publish(record)
            if result.changed and (record.done or record.cancel_requested_at is not None):
                self._notify(record.id)

    def _after_sweep(self, item: tuple[Sweep, int | None], result: Swept | Exception) -> None:
        sweep, _ = item
        if isinstance(result, Exception):
            return
        count_swept(sweep, result)
        if result.ids and not isinstance(sweep, DeleteExpired):
            self._changes.look_at(result.ids)
            self._notify(*result.ids)

    def _write(
        self, items: Sequence[Command | ProveWrites]
    ) -> Sequence[Outcome | Exception | None]:
        commands = [item for item in items if not isinstance(item, ProveWrites)]
        outcomes = iter(self._writer.write(commands) if commands else [])
        failed: Exception | None = None
        if len(commands) < len(items):
            try:
                self._database.prove_write()
            except Exception as error:  # noqa: BLE001 - goes to who asked for it: the commands are durable
                failed = error
        return [failed if isinstance(item, ProveWrites) else next(outcomes) for item in items]

    def _sweep(self, sweeps: Sequence[tuple[Sweep, int | None]]) -> list[Swept | Exception]:
        swept: list[Swept | Exception] = []
        for sweep, cutoff in sweeps:
            try:
                # Read before the statement, and not again when it is sent again.
                due_by = self._read_clock()[0] if cutoff is None else cutoff
                work = partial(self._repository.sweep, sweep=sweep, cutoff=due_by)
                swept.append(self._database.write(work))
            except Exception as error:  # noqa: BLE001 - goes to whoever asked for this one
                swept.append(error)
        return swept

    def _read_clock(self) -> tuple[int, bool]:
        return self._database.read(self._repository.read_clock)


def _as_of(clock: int, change: Change) -> Change:
    """The change as it was when the clock was read. What has expired since is gone for the next look.

    Streams begin with that clock: by it they take what has expired later for what they will be told of.
    """
    if change.gone and change.expires_at is not None and change.expires_at > clock:
        return change._replace(gone=False)
    return change


def _due(seconds: float | None) -> float | None:
    """The event loop's time after so many seconds; None for never."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def _call_each(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = []
    for call in calls:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - goes to the caller
            results.append(error)
    return results
