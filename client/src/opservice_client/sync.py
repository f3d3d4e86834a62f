"""Producing operations from a service with threads: the asyncio client, on an event loop of its own.

The same names and meanings as in opservice_client.aio; functions given to `run` run in threads.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyPayload

from opservice_client import aio, processes
from opservice_client._proto.opservice.v1.operation_record_pb2 import Progress
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client.connection import CallMetadata, Token
from opservice_client.errors import Failed, OperationCancelled
from opservice_client.payloads import Encoder, encode, pack
from opservice_client.requests import StartOptions, copied
from opservice_client.traces import continued
from opservice_client.work import CLOSED, CLOSED_BY_ITSELF

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Producer", "Work"]

P = ParamSpec("P")
T = TypeVar("T")

_EXIT_GRACE = timedelta(seconds=5)
"""At the interpreter's end all functions in threads have returned; this is for sending their results."""
_STOP_SECONDS = 5.0
"""How long what closing has left, for it was interrupted, may take to say how its operations ended."""


class Producer:
    """Starts operations, and sees that each ends whose work is begun. Make one for a service's life.

    It may be made at any time, also at import and before a fork: it connects on first use. The arguments
    are those of opservice_client.aio.Producer. At most `max_workers` functions run at once; those that wait
    have their leases renewed too.

    When the interpreter ends without `close`, functions that run are waited for, as
    concurrent.futures does, and their results are sent.

    Raises ValueError when a token would leave this machine in plaintext.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: Token = None,
        tls_server_name: str | None = None,
        call_metadata: CallMetadata = (),
        start_timeout: timedelta = timedelta(seconds=10),
        result_timeout: timedelta = timedelta(minutes=5),
        encode: Encoder = encode,
        max_workers: int = 32,
    ) -> None:
        self._producer = aio.Producer(
            target,
            credentials=credentials,
            token=token,
            tls_server_name=tls_server_name,
            call_metadata=call_metadata,
            start_timeout=start_timeout,
            result_timeout=result_timeout,
            encode=encode,
        )
        self._encode = encode
        self._max_workers = max_workers
        self._closed = False
        self._lock = threading.Lock()
        self._threads: _Threads | None = None
        processes.tell_after_fork(self, Producer._forget)

    def start(self, **options: Unpack[StartOptions]) -> Work:
        """Starts an operation: durable when this returns, so its id may be handed out.

        Begin the work at once: the lease is renewed from then on.

        Raises StartFailed when opservice refuses, or is not reached within `start_timeout`; TypeError and
        ValueError for options that cannot be sent; RuntimeError once closed, and in a forked process in
        which gRPC does not work.
        """
        threads = self._threads_started()
        work = threads.wait(self._producer.start(interrupt=False, **options))
        return Work(work, threads, self._encode)

    def resume(self, operation_id: str, lease_token: str) -> Work:
        """The work of an operation that another process started, and does not work on itself.

        It is called with that work's `id` and `lease_token`, and renews the lease: for a worker of a queue,
        and for the one that comes after a worker that was killed. If the operation was cancelled or has
        ended meanwhile, `cancelled` is set. Whoever has the token can end the operation: only one process
        may work on it at a time.

        Raises CallFailed when opservice refuses, as it does with another token, or is not reached within
        `start_timeout`; RuntimeError as `start` does.
        """
        threads = self._threads_started()
        work = threads.wait(self._producer.resume(operation_id, lease_token, interrupt=False))
        return Work(work, threads, self._encode)

    def get(self, operation_id: str) -> Operation:
        """The operation, for a service whose clients ask it and not opservice.

        With the producer's credentials, not with theirs: look at `created_by` first, or at what else says
        whose it is. Raises CallFailed: NOT_FOUND, or opservice is not reached within `start_timeout`.
        """
        return self._threads_started().wait(self._producer.get(operation_id))

    def cancel(self, operation_id: str) -> Operation:
        """Cancels the operation, as its `cancel_policy` has it. One that is done stays as it is.

        With the producer's credentials, as `get`. Raises CallFailed: NOT_FOUND, FAILED_PRECONDITION when it
        cannot be cancelled, or opservice is not reached within `start_timeout`.
        """
        return self._threads_started().wait(self._producer.cancel(operation_id))

    def close(self, grace: timedelta = timedelta(0)) -> None:
        """Waits up to `grace` for running work, fails what is left with ABORTED, and disconnects.

        A thread cannot be stopped from outside: work that does not look at `cancelled` runs on.

        Raises RuntimeError when a function given to `run` calls it: it would wait for itself.
        """
        with self._lock:
            if self._threads is not None:
                self._threads.check_closable()
            self._closed = True
            threads, self._threads = self._threads, None
        _open.discard(self)
        if threads is not None:
            try:
                threads.wait(self._producer.close(grace))
            finally:  # also when this is interrupted: nothing is renewed by a thread that nobody knows
                threads.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget(self) -> None:
        """Called in the child after a fork: what the parent has stays the parent's."""
        _open.discard(self)
        self._lock = threading.Lock()
        processes.keep(self._threads)
        self._threads = None

    def _threads_started(self) -> _Threads:
        with self._lock:
            if self._closed:
                raise RuntimeError(CLOSED)
            processes.check_usable()
            if self._threads is None:
                self._threads = _Threads(self._max_workers)
                _open.add(self)
            return self._threads


class Work:
    """See opservice_client.aio.Work. Its methods may be called from any thread."""

    def __init__(self, work: aio.Work, threads: _Threads, encode: Encoder) -> None:
        self._work = work
        self._threads = threads
        self._encode = encode
        self._is_claimed = False
        self.cancelled: threading.Event = threading.Event()
        """Set when Cancel was called, or the operation has ended without us, or the producer closes."""
        work.on_cancelled(self.cancelled.set)

    @property
    def operation(self) -> Operation:
        """As it was last heard of."""
        return self._work.operation

    @property
    def owned(self) -> bool:
        """Whether this start made the operation, and not another with the same idempotency key."""
        return self._work.owned

    @property
    def id(self) -> str:
        return self._work.id

    @property
    def lease_token(self) -> str:
        """The secret with which another process may `resume` it, or call ProducerService for it."""
        return self._work.lease_token

    @property
    def traceparent(self) -> str:
        """The trace that it was started in, as W3C has it; empty when there is none."""
        return self._work.traceparent

    def run(
        self,
        function: Callable[Concatenate[Work, P], Any],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Runs `function(work, ...)` in a thread; what it returns is the response.

        Does nothing unless `owned`, nor when it is cancelled before its turn, nor when the producer is
        closed. Raises RuntimeError when it is run or entered already.
        """

        def call() -> AnyPayload:
            self.raise_if_cancelled()
            try:
                with continued(self.traceparent):
                    return pack(function(self, *args, **kwargs), self._encode)
            except (
                StopIteration,
                SystemExit,
                KeyboardInterrupt,
                CancelledError,
                asyncio.CancelledError,
            ) as error:
                # An event loop cannot pass these on: it would lose them, end, or take them for its own.
                raise RuntimeError(f"the work raised {type(error).__name__}") from error

        if self.owned:
            self._claim()
            self._threads.run(self._work, call)

    def report(self, progress: Progress | None = None, metadata: Any = None) -> None:
        """Shows how far the work is, within about half a second. Never waits.

        It is a hint: what the server refuses is logged and dropped, and the work goes on. Raises
        TypeError for metadata that cannot be stored.
        """
        # Copies, for the loop's thread reads them when the work may be changing them again.
        progress = None if progress is None else copied(progress)
        metadata = None if metadata is None else pack(metadata, self._encode)
        self._threads.call_soon(partial(self._work.report, progress, metadata))

    def raise_if_cancelled(self) -> None:
        """Raises OperationCancelled once `cancelled` is set."""
        if self.cancelled.is_set():
            self._work.raise_cancelled()

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """Calls back, in a thread of its own, when `cancelled` is set; at once if it is.

        For what only another thread can stop, such as a child process or a socket. What the callback
        raises is logged, by threading.excepthook.
        """
        thread = threading.Thread(target=callback, name="opservice-cancelled", daemon=True)
        self._threads.call_soon(partial(self._work.on_cancelled, thread.start))

    def complete(self, response: Any = None) -> None:
        """Gives the result, which is sent on leaving the block. None is google.protobuf.Empty.

        A protobuf message, a dict, list, str or number, a dataclass or pydantic model, or what the
        producer's `encode` takes. Raises TypeError or ValueError when it cannot be stored.
        """
        self._work.complete(response)

    def fail(self, failure: Failed) -> None:
        """Gives the error, which is sent on leaving the block."""
        self._work.fail(failure)

    def __enter__(self) -> Self:
        self._claim()
        try:
            self._threads.wait(self._work.__aenter__())
            return self  # noqa: TRY300 - an interrupt between here and the caller must be seen
        except BaseException:  # such as KeyboardInterrupt, after which __exit__ is not called
            self._threads.call_soon(self._work.abandon)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        handled = isinstance(error, OperationCancelled | Failed)
        if self._threads.is_this_thread():  # a generator that is thrown away, by chance here
            self._work.abandon(error)
        elif not self._threads.stopped:  # else closing has ended the operation, or the parent will
            self._threads.wait(self._work.__aexit__(kind, error, traceback))
        return handled

    def _claim(self) -> None:
        if not self.owned:
            raise RuntimeError(f"operation {self.id} is owned by another: look at work.owned first")
        if self._is_claimed:
            raise RuntimeError(
                f"operation {self.id} is worked on already: run or enter it only once"
            )
        self._is_claimed = True


class _Threads:
    """An event loop in a thread of its own, which keeps no process alive, and threads for functions."""

    def __init__(self, max_workers: int) -> None:
        self.workers: ThreadPoolExecutor = ThreadPoolExecutor(
            max_workers, thread_name_prefix="opservice-work"
        )
        self.stopped: bool = False
        self._closed_message = CLOSED
        self._running = threading.local()
        """Its `id` is that of the operation whose function runs in this thread."""
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
        processes.tell_after_fork(self, _Threads._forget)

    def is_this_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def run(self, work: aio.Work, call: Callable[[], AnyPayload]) -> None:
        """Runs the call in a thread, as the work. Does nothing once stopped."""
        with self._lock:
            if self.stopped:
                return
            # Not on the loop: the interpreter may begin to end before that has its turn.
            called = self.workers.submit(self._call, work.id, call)

            async def result(_: aio.Work) -> AnyPayload:
                return await asyncio.wrap_future(called)

            self._loop.call_soon_threadsafe(work.run, result)

    def _call(self, operation_id: str, call: Callable[[], AnyPayload]) -> AnyPayload:
        self._running.id = operation_id
        try:
            return call()
        finally:
            self._running.id = None

    def check_closable(self) -> None:
        """Raises RuntimeError in a thread of `run`: closing would wait for it."""
        if (operation_id := getattr(self._running, "id", None)) is not None:
            raise RuntimeError(CLOSED_BY_ITSELF.format(operation_id))

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
                raise RuntimeError(self._closed_message)
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the producer was closed meanwhile") from None
        except BaseException:
            future.cancel()  # when this thread is interrupted, nobody waits for the answer
            raise

    def stop(self) -> None:
        """Ends what still runs on the loop, and the thread."""
        with self._lock:
            self.stopped = True
            self._loop.call_soon_threadsafe(self._stop.set)
        self.workers.shutdown(wait=False, cancel_futures=True)
        self._thread.join()

    def _forget(self) -> None:
        """Called in the child after a fork: the thread is the parent's."""
        self._lock = threading.Lock()
        self.stopped = True
        self._closed_message = "the operation was started by the parent process, which works on it"

    async def _until_stopped(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        ready.set()
        await self._stop.wait()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:  # what goes on after that is cancelled once more, by asyncio.run
            await asyncio.wait(left, timeout=_STOP_SECONDS)


_open: set[Producer] = set()
"""Kept here, for work may run of which nobody else has the producer any more."""


@atexit.register
def close_all() -> None:
    """Closes every producer that is not closed yet, for the interpreter ends."""
    for producer in list(_open):
        producer.close(_EXIT_GRACE)
