"""The two producers under one face, so that what both promise is written once.

The body of a work is a generator: it yields where it waits, and returns the result.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import opservice_client as threads
from opservice_client import Progress, aio
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from support.server import PATIENCE

PAUSE = 0.02

T = TypeVar("T")


class WorkLike(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def lease_token(self) -> str: ...
    @property
    def owned(self) -> bool: ...
    @property
    def operation(self) -> Operation: ...
    @property
    def traceparent(self) -> str: ...
    @property
    def cancelled(self) -> threading.Event | asyncio.Event: ...
    def report(self, progress: Progress | None = ..., metadata: Any = ...) -> None: ...
    def raise_if_cancelled(self) -> None: ...
    def complete(self, response: Any = ...) -> None: ...
    def fail(self, failure: threads.Failed) -> None: ...


Steps = Generator[None, None, Any]
Body = Callable[[Any], Steps]


def returning(result: Any) -> Body:
    def body(work: WorkLike) -> Steps:
        yield
        return result

    return body


def raising(error: BaseException) -> Body:
    def body(work: WorkLike) -> Steps:
        yield
        raise error

    return body


class Kind(Protocol):
    """A producer. `run` works in the background, `block` in a with block, until that is left."""

    def start(self, **options: Any) -> WorkLike: ...
    def resume(self, operation_id: str, lease_token: str) -> WorkLike: ...
    def get(self, operation_id: str) -> Operation: ...
    def cancel(self, operation_id: str) -> Operation: ...
    def run(self, work: Any, body: Body) -> None: ...
    def block(self, work: Any, body: Body) -> None: ...
    def close(self, grace: timedelta = ...) -> None: ...


class Threads:
    def __init__(self, target: str, **options: Any) -> None:
        self.producer = threads.Producer(target, **options)

    def start(self, **options: Any) -> threads.Work:
        return self.producer.start(**options)

    def resume(self, operation_id: str, lease_token: str) -> threads.Work:
        return self.producer.resume(operation_id, lease_token)

    def get(self, operation_id: str) -> Operation:
        return self.producer.get(operation_id)

    def cancel(self, operation_id: str) -> Operation:
        return self.producer.cancel(operation_id)

    def run(self, work: threads.Work, body: Body) -> None:
        work.run(lambda it: _driven(body(it)))

    def block(self, work: threads.Work, body: Body) -> None:
        with work:
            _driven(body(work))

    def close(self, grace: timedelta = timedelta(0)) -> None:
        self.producer.close(grace)


class Asyncio:
    """The asyncio producer, on an event loop in another thread."""

    def __init__(self, target: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

        async def connect() -> aio.Producer:
            return aio.Producer(target, **options)

        self.producer = self._wait(connect())

    def start(self, **options: Any) -> aio.Work:
        # The bodies poll, as those in threads do; client/tests/test_asyncio.py has others.
        return self._wait(self.producer.start(interrupt=False, **options))

    def resume(self, operation_id: str, lease_token: str) -> aio.Work:
        return self._wait(self.producer.resume(operation_id, lease_token, interrupt=False))

    def get(self, operation_id: str) -> Operation:
        return self._wait(self.producer.get(operation_id))

    def cancel(self, operation_id: str) -> Operation:
        return self._wait(self.producer.cancel(operation_id))

    def run(self, work: aio.Work, body: Body) -> None:
        async def run() -> None:
            work.run(lambda it: _driven_aio(body(it)))

        self._wait(run())

    def block(self, work: aio.Work, body: Body) -> None:
        async def block() -> None:
            async with work:
                await _driven_aio(body(work))

        self._wait(block())

    def close(self, grace: timedelta = timedelta(0)) -> None:
        if self._loop.is_closed():
            return
        left = self._wait(self._left_after_closing(grace))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert not left, left

    async def _left_after_closing(self, grace: timedelta) -> set[asyncio.Task[Any]]:
        await self.producer.close(grace)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        # Those of grpc end a moment later.
        return (await asyncio.wait(others, timeout=PATIENCE))[1] if others else set()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


KINDS: dict[str, Callable[..., Kind]] = {"threads": Threads, "asyncio": Asyncio}


def _driven(body: Steps) -> Any:
    while True:
        try:
            next(body)
        except StopIteration as end:
            return end.value
        time.sleep(PAUSE)


async def _driven_aio(body: Steps) -> Any:
    while True:
        try:
            next(body)
        except StopIteration as end:
            return end.value
        await asyncio.sleep(PAUSE)
