"""Many callers, few transactions: what arrives while one batch runs forms the next.

There is no timer. A lone caller's batch is its own and starts at once; under load concurrent writes
share one transaction and one fsync, concurrent reads one query.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

from opservice.errors import (
    OperationNotFound,
    ServerStopping,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from opservice.operation import SECOND, Command, Outcome, Record, Sweep, Swept
from opservice.store.changes import Changes
from opservice.store.engine import Database
from opservice.store.repository import Repository

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
        self, database: Database, repository: Repository, poll_interval: int = SECOND
    ) -> None:
        self._database = database
        self._repository = repository
        self._reads: Batcher[str, Record] = Batcher("store-read", self._read)
        self._writes: Batcher[Command, Outcome] = Batcher("store-write", self._write)
        self._sweeps: Batcher[Sweep, Swept] = Batcher("store-sweep", self._sweep)
        self._polls: Batcher[list[str], dict[str, int]] = Batcher("store-poll", self._poll)
        self._changes = Changes(self._polls.submit, poll_interval)

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
        if outcome.changed:
            self._changes.notify((outcome.record.id,))
        return outcome

    async def sweep(self, sweep: Sweep) -> Swept:
        """Applies a sweep, in a transaction of its own. Raises a StoreError."""
        swept = await self._sweeps.submit(sweep)
        self._changes.notify(swept.ids)
        return swept

    async def follow(self, operation_id: str) -> AsyncGenerator[Record]:
        """The operation as it is, then as it becomes, until it is done.

        States may be skipped, but `revision` only grows. Raises OperationNotFound, also when it is
        deleted meanwhile, a StoreError, or ServerStopping.
        """
        with self._changes.subscribe(operation_id) as signal:
            while not self._changes.closed:
                record = await self.get(operation_id)
                if record.revision > signal.seen:
                    signal.seen = record.revision
                    yield record
                    if record.done:
                        return
                await signal.wait()
            raise ServerStopping

    def stop_following(self) -> None:
        """Ends every `follow`, so that clients go on with another replica."""
        self._changes.close()

    async def close(self) -> None:
        """Waits for what was asked for, then closes the database."""
        self.stop_following()
        await self._polls.close()
        await self._sweeps.close()
        await self._writes.close()
        await self._reads.close()
        self._database.close()

    def _poll(self, polls: Sequence[list[str]]) -> list[dict[str, int]]:
        return [self._revisions(ids) for ids in polls]

    def _revisions(self, ids: list[str]) -> dict[str, int]:
        revisions: dict[str, int] = {}
        for start in range(0, len(ids), MAX_BATCH):
            batch = ids[start : start + MAX_BATCH]
            revisions |= self._database.read(partial(self._repository.revisions, ids=batch))
        return revisions

    def _read(self, ids: Sequence[str]) -> list[Record | Exception]:
        found = self._database.read(lambda connection: self._repository.find(connection, set(ids)))
        return [found.get(id_) or OperationNotFound(id_) for id_ in ids]

    def _write(self, commands: Sequence[Command]) -> Sequence[Outcome | Exception]:
        try:
            return self._database.write(lambda c: self._repository.apply(c, commands))
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
