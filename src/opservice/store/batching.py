"""Many callers, few transactions: what arrives while one batch runs forms the next.

There is no timer. A lone caller's batch is its own and starts at once; under load concurrent writes
share one transaction and one fsync, concurrent reads one query.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import Connection

from opservice.errors import (
    OperationNotFound,
    OpserviceError,
    ServerStopping,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from opservice.operation import (
    SECOND,
    Command,
    Delete,
    DeleteExpired,
    Outcome,
    Record,
    Sweep,
    Swept,
)
from opservice.store.changes import Changes
from opservice.store.engine import Database
from opservice.store.hints import Hints
from opservice.store.repository import Repository

log = structlog.stdlib.get_logger("opservice.store")

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 500
"""Commands in a transaction, ids in a query: bounds how long one batch keeps the next waiting."""


HANG_SECONDS = 15
"""After this a batch is held to hang; longer than any of the database's own time limits.

Some waits have none: a COMMIT for a synchronous standby that is away, a disk that does not answer.
"""


class Batcher(Generic[Item, Result]):
    """Hands items to `run`, a batch at a time, on a thread of its own; one result for each item.

    A result that is an exception is raised in that item's caller; what `run` raises, in all of them.
    While `run` hangs, callers are told StoreUnavailable rather than kept, and no more are taken.
    """

    def __init__(self, name: str, run: Callable[[Sequence[Item]], Sequence[Result | Exception]]):
        self._run = run
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._hangs = False

    async def submit(self, item: Item) -> Result:
        """The item's result. An item whose caller gave up may run all the same.

        Raises StoreUnavailable when that takes longer than HANG_SECONDS.
        """
        if self._hangs:
            raise StoreUnavailable
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run_batches())
        return await future

    async def close(self) -> None:
        """Waits for what was submitted."""
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    async def _run_batches(self) -> None:
        try:
            while self._waiting:
                batch = [entry for entry in self._waiting[:MAX_BATCH] if not entry[1].done()]
                del self._waiting[:MAX_BATCH]
                if batch:
                    await self._run_batch(batch)
        finally:
            self._runner = None

    async def _run_batch(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        items = [item for item, _ in batch]
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, items)
        await asyncio.wait([running], timeout=HANG_SECONDS)
        if not running.done():
            self._hangs = True
            for _, future in (*batch, *self._waiting):
                if not future.done():
                    future.set_exception(StoreUnavailable())
            self._waiting.clear()
        results: Sequence[Result | Exception]
        try:
            results = await running
        except Exception as error:  # noqa: BLE001 - goes to the callers
            results = [error] * len(batch)
        self._hangs = False
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


class OperationStore:
    """What the rest of the server knows of the store."""

    def __init__(
        self,
        database: Database,
        repository: Repository,
        poll_interval: int = SECOND,
        *,
        notify: bool = True,
    ) -> None:
        self._database = database
        self._repository = repository
        self._reads: Batcher[str, Record] = Batcher("store-read", self._read)
        self._writes: Batcher[Command, Outcome] = Batcher("store-write", self._write)
        self._sweeps: Batcher[Sweep, Swept] = Batcher("store-sweep", self._sweep)
        self._asides: Batcher[Callable[[], Any], Any] = Batcher("store-aside", _call_each)
        self._hints = Hints(database, self._asides.submit, notify=notify)
        self._changes = Changes(self.get, self._revisions, self._hints.receive, poll_interval)
        self._to_hint: list[str] = []
        self._sender: asyncio.Task[None] | None = None

    async def get(self, operation_id: str) -> Record:
        """The operation, as of some moment after the call.

        Raises OperationNotFound, or a StoreError.
        """
        return await self._reads.submit(operation_id)

    async def apply(self, command: Command) -> Outcome:
        """Applies a command; it is durable when this returns.

        Raises what the command is refused with (see errors.py), or a StoreError: then it may or may
        not have happened, and may be repeated.
        """
        outcome = await self._writes.submit(command)
        record = outcome.record
        if not isinstance(command, Delete):
            self._changes.publish(record)
            if outcome.changed and (record.done or record.cancel_requested_at is not None):
                self._send_hint(record.id)
        return outcome

    async def sweep(self, sweep: Sweep) -> Swept:
        """Applies a sweep, in a transaction of its own. Raises a StoreError."""
        swept = await self._sweeps.submit(sweep)
        if swept.ids and not isinstance(sweep, DeleteExpired):
            self._changes.hint(swept.ids)
            self._send_hint(*swept.ids)
        return swept

    async def follow(self, operation_id: str) -> AsyncGenerator[Record]:
        """The operation as it is, then as it becomes, until it is done.

        States may be skipped, but `revision` only grows. Raises OperationNotFound, also when it is
        deleted meanwhile, a StoreError, or ServerStopping.
        """
        with self._changes.subscribe(operation_id) as follower:
            follower.tell(await self.get(operation_id))
            while True:
                record = await follower.next()
                yield record
                if record.done:
                    return

    async def wait(self, operation_id: str, at_most: int) -> Record:
        """The operation once it is done, or as it is after `at_most` microseconds.

        When the server stops, the operation as it is then. Raises OperationNotFound or a StoreError.
        """
        if at_most > 0:
            with suppress(TimeoutError, ServerStopping):
                async with asyncio.timeout(at_most / SECOND):
                    async with aclosing(self.follow(operation_id)) as records:
                        async for record in records:
                            if record.done:
                                return record
        return await self.get(operation_id)

    def stop_following(self) -> None:
        """Ends every `follow` and `wait`, so that clients go on with another replica."""
        self._changes.close()

    async def close(self) -> None:
        """Waits for what was asked for, then closes the database."""
        self.stop_following()
        if self._sender is not None:
            await self._sender
        await self._asides.close()
        await self._sweeps.close()
        await self._writes.close()
        await self._reads.close()
        self._database.close()

    async def _revisions(self, ids: Sequence[str]) -> dict[str, int]:
        read = partial(self._database.read, partial(self._repository.revisions, ids=ids))
        revisions: dict[str, int] = await self._asides.submit(read)
        return revisions

    def _send_hint(self, *operation_ids: str) -> None:
        """What was hinted while a hint was being sent goes with the next."""
        self._to_hint += operation_ids
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_hints())

    async def _send_hints(self) -> None:
        try:
            while self._to_hint:
                ids, self._to_hint = self._to_hint, []
                try:
                    await self._hints.send(ids)
                except StoreError as error:
                    log.warning("hint not sent", cause=str(error.__cause__ or error))
        finally:
            self._sender = None

    def _read(self, ids: Sequence[str]) -> list[Record | Exception]:
        found = self._database.read(lambda connection: self._repository.find(connection, set(ids)))
        return [found.get(id_) or OperationNotFound(id_) for id_ in ids]

    def _write(self, commands: Sequence[Command]) -> Sequence[Outcome | Exception]:
        before: list[Outcome | OpserviceError] = []

        def apply(connection: Connection) -> list[Outcome | OpserviceError]:
            outcomes = self._repository.apply(connection, commands)
            # After a commit of which nothing is known, what this has deleted is not there to be found.
            for index, first in enumerate(before):
                gone = isinstance(outcomes[index], OperationNotFound)
                if isinstance(commands[index], Delete) and isinstance(first, Outcome) and gone:
                    outcomes[index] = first
            before[:] = outcomes
            return outcomes

        try:
            return self._database.write(apply)
        except StoreError as error:
            for_a_command = type(error) in (StoreError, StoreBusy)
            if len(commands) == 1 or not for_a_command:
                raise
        # One of them is at fault: each for itself, so that the others do not suffer from it.
        outcomes: list[Outcome | Exception] = []
        for command in commands:
            try:
                outcomes += self._write([command])
            except StoreError as error:
                outcomes.append(error)
        return outcomes

    def _sweep(self, sweeps: Sequence[Sweep]) -> list[Swept | Exception]:
        swept: list[Swept | Exception] = []
        for sweep in sweeps:
            try:
                swept.append(self._database.write(partial(self._repository.sweep, sweep=sweep)))
            except StoreError as error:
                swept.append(error)
        return swept


def _call_each(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = []
    for call in calls:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - goes to the caller
            results.append(error)
    return results
