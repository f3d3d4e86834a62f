"""Many callers, few transactions: what arrives while one batch runs forms the next.

There is no timer. A lone caller's batch is its own and starts at once; under load concurrent writes
share one transaction and one fsync, concurrent reads one query.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, NamedTuple, TypeVar

from opentelemetry.trace import SpanContext

from opservice.common import tracing
from opservice.common.metrics import BATCH_ERRORS, BATCH_ITEMS, BATCH_SECONDS
from opservice.domain.errors import (
    ServerBusy,
    StoreBusy,
    StoreError,
    StoreFileLost,
    StoreFull,
    StoreUnavailable,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 500
"""Commands in a transaction, ids in a query: bounds how long one batch keeps the next waiting."""

_DATABASE_ERRORS = (StoreError, StoreUnavailable, StoreBusy, StoreFileLost, StoreFull)
"""Counted from the start: Prometheus sees no rise in a counter that is there only since its first error."""

HANG_SECONDS = 15
"""After this a batch is held to hang; longer than any of the database's own time limits.

Some waits have none: a COMMIT for a synchronous standby that is away, a disk that does not answer.
"""


class _Entry(NamedTuple, Generic[Item, Result]):
    """An item that waits, and who waits for its result."""

    item: Item
    future: asyncio.Future[Result]
    caller: SpanContext | None
    """The span of the caller, when there are traces."""


class Batcher(Generic[Item, Result]):
    """Hands items to a function, a batch at a time, on a thread of its own; one result for each item.

    A batch that takes longer than HANG_SECONDS hangs: its callers and those who wait for the next are told
    StoreUnavailable rather than kept, and so is every new caller until it ends.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        max_batch: int = MAX_BATCH,
        max_waiting: int | None = None,
        after: Callable[[Item, Result | Exception], None] | None = None,
        on_loop: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception] | None]]
        | None = None,
        on_hang: Callable[[float], object] = lambda _seconds: None,
        traced_alone: bool = True,
    ) -> None:
        """The function is `run`. A result that is an exception is raised in that item's caller; what `run`
        raises, in all of the batch's.

        `name` is that of the thread; without `store-` the metrics have it. A batch has at most `max_batch`
        items. `after` is told of each result, also of those whose caller has left meanwhile. `on_loop` is
        asked before `run`, on the event loop; `run` gets the batch when that has no results (None). `on_hang`
        is called every HANG_SECONDS while a batch hangs, and is given that number; it may free the thread.
        Without `traced_alone` a batch has a span only when it is for a call that has one.
        """
        self._on_loop = on_loop
        self._traced_alone = traced_alone
        self._on_hang = on_hang
        self._run = run
        self._max_waiting = max_waiting
        self._after = after
        self._max_batch = max_batch
        kind = name.removeprefix("store-")
        self._items = BATCH_ITEMS.labels(kind)
        self._seconds = BATCH_SECONDS.labels(kind)
        for error in _DATABASE_ERRORS:
            BATCH_ERRORS.labels(kind, error.__name__)
        self._kind = kind
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting: list[_Entry[Item, Result]] = []
        self._runner: asyncio.Task[None] | None = None
        self._hangs = False

    async def submit(self, item: Item) -> Result:
        """The item's result. An item whose caller gave up may run all the same.

        Raises StoreUnavailable when that takes longer than HANG_SECONDS, and ServerBusy when
        `max_waiting` others wait.
        """
        if self._hangs:
            self._count(StoreUnavailable)
            raise StoreUnavailable
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise ServerBusy
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        caller = None if tracing.active() is None else tracing.current()
        self._waiting.append(_Entry(item, future, caller))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run_batches(), context=tracing.of_no_call())
        return await future

    async def close(self) -> None:
        """Waits for what was submitted, and ends the thread."""
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    async def _run_batches(self) -> None:
        try:
            while self._waiting:
                batch = [
                    entry for entry in self._waiting[: self._max_batch] if not entry.future.done()
                ]
                del self._waiting[: self._max_batch]
                if batch:
                    await self._run_batch(batch)
        finally:
            self._runner = None

    async def _run_batch(self, batch: Sequence[_Entry[Item, Result]]) -> None:
        items = [entry.item for entry in batch]
        self._items.inc(len(items))
        began = time.perf_counter()
        self._watch_for_hang(batch)
        try:
            with self._traced(batch):
                results = await self._results(items)
        except Exception as error:  # noqa: BLE001 - goes to the callers
            results = [error] * len(batch)
        finally:
            self._timer.cancel()
        self._seconds.observe(time.perf_counter() - began)
        self._hangs = False
        for (item, future, _), result in zip(batch, results, strict=True):
            if self._after is not None:
                self._after(item, result)
            was_told = future.done() and not future.cancelled()
            if isinstance(result, StoreError) and not was_told:
                self._count(type(result))
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _results(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        results = None if self._on_loop is None else await self._on_loop(items)
        if results is None:
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._thread, self._run, items)
        return results

    def _count(self, error: type[StoreError]) -> None:
        BATCH_ERRORS.labels(self._kind, error.__name__).inc()

    def _traced(self, batch: Sequence[_Entry[Item, Result]]) -> AbstractContextManager[None]:
        traces = tracing.active()
        if traces is None:
            return nullcontext()
        callers = [entry.caller for entry in batch if entry.caller is not None]
        if not (callers or self._traced_alone):
            return nullcontext()
        return traces.batch(self._kind, len(batch), callers)

    def _watch_for_hang(self, batch: Sequence[_Entry[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HANG_SECONDS, self._hang, batch)

    def _hang(self, batch: Sequence[_Entry[Item, Result]]) -> None:
        self._watch_for_hang(batch)
        self._hangs = True
        for entry in (*batch, *self._waiting):
            if not entry.future.done():
                self._count(StoreUnavailable)
                entry.future.set_exception(StoreUnavailable())
        self._waiting.clear()
        self._on_hang(HANG_SECONDS)
