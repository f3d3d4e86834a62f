"""Producing operations from a service with threads: the asyncio client, on an event loop of its own.

The same names and meanings as in opservice_client.aio; functions given to `run` run in threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import grpc
from google.protobuf.message import Message

from opservice_client import aio
from opservice_client._proto.opservice.v1.operation_record_pb2 import Progress
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client.connection import Metadata
from opservice_client.errors import Failed, OperationCancelled
from opservice_client.requests import StartOptions, copied, pack

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Producer", "Work"]

P = ParamSpec("P")
T = TypeVar("T")


class Producer:
    """See opservice_client.aio.Producer. At most `max_workers` functions run at once."""

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
        self._loop = _LoopThread()
        self._workers = ThreadPoolExecutor(max_workers, thread_name_prefix="opservice-work")

        async def connect() -> aio.Producer:
            return aio.Producer(
                target,
                credentials=credentials,
                metadata=metadata,
                start_timeout=start_timeout,
                result_timeout=result_timeout,
            )

        self._producer = self._loop.wait(connect())

    def start(self, **options: Unpack[StartOptions]) -> Work:
        """Starts an operation: durable when this returns, so its id may be handed out.

        Raises StartFailed.
        """
        return Work(self._loop.wait(self._producer.start(**options)), self._loop, self._workers)

    def close(self, grace: timedelta = timedelta(0)) -> None:
        """Waits up to `grace` for running work, fails what is left with ABORTED, and disconnects.

        A thread cannot be stopped from outside: work that does not look at `cancelled` runs on.
        """
        if not self._loop.stopped:
            self._loop.wait(self._producer.close(grace))
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Work:
    """See opservice_client.aio.Work. Its methods may be called from any thread."""

    def __init__(self, work: aio.Work, loop: _LoopThread, workers: ThreadPoolExecutor) -> None:
        self._work = work
        self._loop = loop
        self._workers = workers
        self.cancelled = threading.Event()
        """Set when Cancel was called, or the operation has ended without us, or the producer closes."""
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

        Does nothing unless `owned`, nor when it is cancelled before its turn.
        """

        def call() -> Message | None:
            self.raise_if_cancelled()
            try:
                return function(self, *args, **kwargs)
            except (StopIteration, SystemExit, KeyboardInterrupt) as error:
                # An event loop cannot pass these on: the first would be lost, the others end it.
                raise RuntimeError("the work raised what it must not") from error

        async def in_thread(_: aio.Work) -> Message | None:
            return await asyncio.get_running_loop().run_in_executor(self._workers, call)

        self._loop.call_soon(partial(self._work.run, in_thread))

    def report(self, progress: Progress | None = None, metadata: Message | None = None) -> None:
        """Shows how far the work is, within about half a second. Never waits.

        It is a hint: what the server refuses is logged and dropped, and the work goes on.
        """
        # Copies, for the loop's thread reads them when the work may be changing them again.
        progress = None if progress is None else copied(progress)
        metadata = None if metadata is None else pack(metadata)
        self._loop.call_soon(partial(self._work.report, progress, metadata))

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
        self._loop.wait(self._work.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._loop.stopped:  # closing has ended the operation
            return isinstance(error, OperationCancelled | Failed)
        return self._loop.wait(self._work.__aexit__(kind, error, traceback))


class _LoopThread:
    """An event loop in a thread of its own. It keeps no process alive."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.Lock()
        """Held to hand something to the loop, so that nothing is once it stops."""
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._until_stopped(ready)),
            name="opservice-client",
            daemon=True,
        )
        self._thread.start()
        ready.wait()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Does nothing once stopped."""
        with self._lock:
            if not self.stopped:
                self._loop.call_soon_threadsafe(callback)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Raises RuntimeError when the loop is stopped, or stops before the coroutine ends."""
        with self._lock:
            if self.stopped:
                coroutine.close()
                raise RuntimeError("the producer is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the producer was closed meanwhile") from None

    def stop(self) -> None:
        """Ends what still runs on the loop, and the thread."""
        with self._lock:
            self.stopped = True
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _until_stopped(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        ready.set()
        await self._stop.wait()
