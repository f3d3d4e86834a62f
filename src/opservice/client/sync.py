"""Producing operations from a service with threads: the asyncio client, on an event loop of its own.

The same names and meanings as in opservice.client.aio; functions given to `run` run in threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from opservice._proto.opservice.v1.operation_record_pb2 import Progress
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.client import aio
from opservice.client.connection import Metadata
from opservice.client.errors import Failed

__all__ = ["Producer", "Work"]

P = ParamSpec("P")
T = TypeVar("T")


class Producer:
    """See opservice.client.aio.Producer. At most `max_workers` functions run at once."""

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        start_timeout: timedelta = timedelta(seconds=20),
        result_timeout: timedelta = timedelta(minutes=5),
        max_workers: int = 32,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="opservice-client", daemon=True
        )
        self._thread.start()
        self._workers = ThreadPoolExecutor(max_workers, thread_name_prefix="opservice-work")

        async def connect() -> aio.Producer:
            return aio.Producer(
                target,
                credentials=credentials,
                metadata=metadata,
                start_timeout=start_timeout,
                result_timeout=result_timeout,
            )

        self._producer = self._wait(connect())

    def start(self, **options: Unpack[aio.StartOptions]) -> Work:
        """Starts an operation: durable when this returns, so its id may be handed out.

        Raises StartFailed.
        """
        return Work(self._wait(self._producer.start(**options)), self._loop, self._workers)

    def close(self, grace: timedelta = timedelta(0)) -> None:
        """Waits up to `grace` for running work, fails what is left with ABORTED, and disconnects.

        A thread cannot be stopped from outside: work that does not look at `cancelled` runs on.
        """
        self._wait(self._producer.close(grace))
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class Work:
    """See opservice.client.aio.Work. Its methods may be called from any thread."""

    def __init__(
        self, work: aio.Work, loop: asyncio.AbstractEventLoop, workers: ThreadPoolExecutor
    ) -> None:
        self._work = work
        self._loop = loop
        self._workers = workers
        self.cancelled = threading.Event()
        """Set when Cancel was called, or when the operation has ended without us."""
        work.on_cancelled(self.cancelled.set)

    @property
    def operation(self) -> Operation:
        return self._work.operation

    @property
    def owned(self) -> bool:
        return self._work.owned

    @property
    def id(self) -> str:
        return self._work.id

    def run(
        self,
        function: Callable[Concatenate[Work, P], Message | None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Runs `function(work, ...)` in a thread; what it returns is the response.

        Does nothing unless `owned`.
        """
        call = partial(function, self, *args, **kwargs)

        async def in_thread(_: aio.Work) -> Message | None:
            try:
                return await self._loop.run_in_executor(self._workers, call)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

        self._loop.call_soon_threadsafe(self._work.run, in_thread)

    def report(self, progress: Progress | None = None, metadata: Message | None = None) -> None:
        """Shows how far the work is, within about half a second. Never waits, never raises."""
        self._loop.call_soon_threadsafe(partial(self._work.report, progress, metadata))

    def raise_if_cancelled(self) -> None:
        """Raises OperationCancelled once `cancelled` is set."""
        if self.cancelled.is_set():
            self._work.raise_cancelled()

    def complete(self, response: Message | None = None) -> None:
        """Gives the result, which is sent on leaving the block. None is google.protobuf.Empty."""
        self._work.complete(response)

    def fail(self, failure: Failed) -> None:
        """Gives the error, which is sent on leaving the block."""
        self._work.fail(failure)

    def __enter__(self) -> Self:
        self._wait(self._work.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return self._wait(self._work.__aexit__(kind, error, traceback))

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
