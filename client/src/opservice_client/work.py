"""Work that ends an operation, on an event loop.

A work goes from phase to phase, each but the last optional:

STARTED ──begin──► RUNNING ──end──► ENDING ──► ENDED
   └────────────────────end───────────┘ ▲        ▲
                                        └────────┴── from any, when the operation has ended without us

In RUNNING and ENDING the lease is renewed; in RUNNING a cancel is watched for. What is said first as the
result counts: only one is ever sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyPayload
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice_client._proto.opservice.v1.operation_record_pb2 import Progress
from opservice_client._proto.opservice.v1.producer_service_pb2 import StartResponse
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client.calls import OperationCalls, Outcome
from opservice_client.connection import Connection
from opservice_client.errors import Failed, OperationCancelled
from opservice_client.interruption import Interruption, is_cancelled_by_nobody
from opservice_client.payloads import Encoder, pack
from opservice_client.requests import copied
from opservice_client.retries import (
    ERROR_DOMAIN,
    is_malformed,
    is_transient_for_work,
    jitter,
    retry_delay,
)
from opservice_client.traces import continued, current_or, valid

if TYPE_CHECKING:
    from typing_extensions import Self

P = ParamSpec("P")

_RENEWALS_PER_LEASE = 3
_LONGEST_RENEWAL_SECONDS = 30.0
_CLEANUP_SECONDS = 10.0
"""How long work that is stopped may take to clean up."""
_FAREWELL_SECONDS = 10.0
"""How long a service that stops waits for opservice to take the end of an operation."""
_REPORT_SECONDS = 0.5
"""Reports between two renewals are merged: each renewal is a durable write."""

_WATCH_AGAIN_SECONDS = 2.0

_STOPPED = Status(code=Code.ABORTED, message="The service was stopped")
_OVERSTAYED = Status(code=Code.ABORTED, message="The work did not stop when it was cancelled")
_CANCELLED = Status(code=Code.CANCELLED, message="The operation was cancelled")
_CANCELLED.details.add().Pack(ErrorInfo(reason="OPERATION_CANCELLED", domain=ERROR_DOMAIN))
_UNEXPECTED = Status(code=Code.INTERNAL, message="The operation failed unexpectedly")
_NO_RESULT = Status(code=Code.INTERNAL, message="The work ended without a result")
_REFUSED = Status(code=Code.INTERNAL, message="The result cannot be stored")
CLOSED = "the producer is closed"
CLOSED_BY_ITSELF = (
    "the work of operation {} closes its own producer, which would wait for it: close it elsewhere"
)
_MEANS_ENDED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)

log: logging.Logger = logging.getLogger("opservice_client")


class Phase(Enum):
    STARTED = "started"  # nobody works on it here yet, and it is not renewed
    RUNNING = "running"  # it is renewed, and a cancel is watched for
    ENDING = "ending"  # the result is on its way, and it is renewed until it has arrived
    ENDED = "ended"  # nothing more is said of it


class Work:
    """An operation that this process started, and the work that will end it.

    Either `run` a function in the background, or enter it and give the result in the block:

        async with work:
            work.complete(Registry(...))

    Until its end its lease is renewed. Whatever happens in between, the operation ends: with the
    result, with the Failed that was raised, or with INTERNAL when something else was raised or no
    result was given. Not `owned` means that another request with the same idempotency key owns the
    operation: then nothing is run, renewed or ended, only `operation` is there to be returned.

    When the operation is cancelled, or has ended without this work, its task is cancelled: the await
    where it stands raises asyncio.CancelledError, once. It has `cancel_grace` for what it does then.
    With `interrupt=False` given to `start`, the task is left alone, and looks at `cancelled` itself.
    """

    def __init__(
        self,
        connection: Connection,
        started: StartResponse,
        unended: dict[Work, asyncio.Future[None]],
        *,
        token: str,
        lease: timedelta,
        result_timeout: timedelta,
        cancel_grace: timedelta,
        interrupt: bool,
        encode: Encoder,
    ) -> None:
        self.operation: Operation = started.operation
        """As it was last heard of."""
        self.owned: bool = started.owned
        self.cancelled: asyncio.Event = asyncio.Event()
        """Set when Cancel was called, or the operation has ended without us, or the producer closes."""
        self.traceparent: str = valid(started.record.traceparent)
        """The trace that it was started in, as W3C has it; empty when there is none."""
        self._trace = current_or(self.traceparent)
        self._connection = connection
        self._unended = unended
        self._token = token
        self._lease = lease
        self._calls = OperationCalls(connection, self.id, token, lease, result_timeout)
        self._cancel_grace = cancel_grace
        self._interrupt = interrupt
        self._encode = encode
        self._loop = asyncio.get_running_loop()
        self._phase = Phase.ENDED if self.operation.done else Phase.STARTED
        self._is_claimed = False
        self._given: Outcome | None = None
        self._reported = asyncio.Event()
        self._progress: Progress | None = None
        self._metadata: AnyPayload | None = None
        self._interruption = Interruption()
        self._task: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._callbacks: list[Callable[[], None]] = []
        has_error = self.operation.HasField("error")  # also while it is being cancelled
        if self.operation.done or has_error:
            self.cancelled.set()

    @property
    def id(self) -> str:
        return self.operation.id

    @property
    def lease_token(self) -> str:
        """The secret with which another process may `resume` it, or call ProducerService for it."""
        return self._token

    def run(
        self,
        function: Callable[Concatenate[Work, P], Awaitable[Any]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Runs `function(work, ...)` in the background; what it returns is the response.

        Does nothing unless `owned`, nor when it is cancelled before its turn, nor when the producer is
        closed. Raises RuntimeError when it is run or entered already.
        """
        if self.owned and self._connection.is_closing:
            self._set_cancelled(interrupt=False)  # for a thread that has begun with it
        elif self.owned:
            self._claim()
            # Before the task has its turn: who closes must know of it.
            self._unended[self] = self._loop.create_future()
            self._task = asyncio.create_task(self._run(function, *args, **kwargs))

    def report(self, progress: Progress | None = None, metadata: Any = None) -> None:
        """Shows how far the work is, within about half a second. Never waits.

        It is a hint: what the server refuses is logged and dropped, and the work goes on. Raises
        TypeError for metadata that cannot be stored.
        """
        # Copies, for the work may go on to change what it has reported.
        if progress is not None:
            self._progress = copied(progress)
        if metadata is not None:
            self._metadata = pack(metadata, self._encode)
        self._trace = current_or(self.traceparent)
        self._reported.set()

    def raise_if_cancelled(self) -> None:
        """Raises OperationCancelled once `cancelled` is set."""
        if self.cancelled.is_set():
            self.raise_cancelled()

    def raise_cancelled(self) -> NoReturn:
        raise OperationCancelled(f"operation {self.id} is cancelled, or has ended")

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """Calls back, on the event loop, when `cancelled` is set; at once if it is.

        What the callback raises is logged.
        """
        if self.cancelled.is_set():
            self._call_back(callback)
        else:
            self._callbacks.append(callback)

    def complete(self, response: Any = None) -> None:
        """Gives the result, which is sent on leaving the block. None is google.protobuf.Empty.

        A protobuf message, a dict, list, str or number, a dataclass or pydantic model, or what the
        producer's `encode` takes. Raises TypeError or ValueError when it cannot be stored.
        """
        self._given = pack(response, self._encode)

    def fail(self, failure: Failed) -> None:
        """Gives the error, which is sent on leaving the block."""
        self._given = failure.status

    def check_closable(self) -> None:
        """Raises RuntimeError in the task of `run`: closing would wait for it."""
        if self._task is not None and self._task is asyncio.current_task():
            raise RuntimeError(CLOSED_BY_ITSELF.format(self.id))

    async def stop(self) -> None:
        """Fails the operation with ABORTED, unless its end is on the way: what closing does."""
        self._set_cancelled(interrupt=False)
        if self._phase in (Phase.STARTED, Phase.RUNNING) and self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CLEANUP_SECONDS)
        if self._phase in (Phase.STARTED, Phase.RUNNING):
            self.end(_STOPPED)
        if (end := self._unended.get(self)) is not None:
            await asyncio.wait([end], timeout=_FAREWELL_SECONDS)
        for each in (self._ending, self._task):
            if each is not None:
                each.cancel()
                await asyncio.wait([each], timeout=1)  # work may swallow this, too

    def _claim(self) -> None:
        if not self.owned:
            raise RuntimeError(f"operation {self.id} is owned by another: look at work.owned first")
        if self._is_claimed:
            raise RuntimeError(
                f"operation {self.id} is worked on already: run or enter it only once"
            )
        self._is_claimed = True

    def _begin(self) -> None:
        """Renews the lease and watches for a cancel from now on."""
        if self._phase is Phase.STARTED:
            self._phase = Phase.RUNNING
            self._unended.setdefault(self, self._loop.create_future())
            self._renewing = asyncio.create_task(self._renew_until_ended())
            self._watching = asyncio.create_task(self._watch_for_cancel())

    def end(self, outcome: Outcome) -> asyncio.Task[None]:
        """The task that ends the operation. There is one only: what is said first counts."""
        if self._ending is None:
            if self._phase is not Phase.ENDED:
                self._phase = Phase.ENDING
            self._ending = asyncio.create_task(self._end(outcome))
        return self._ending

    def abandon(self, error: BaseException | None = None) -> None:
        """Ends the operation without waiting, from any thread: for who cannot await any more."""
        if not (self._loop.is_closed() or self._connection.is_closing):
            outcome = _STOPPED if error is None else self._status_of(error)
            with suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self.end, outcome)

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is not self._task:
            if self._connection.is_closing:
                raise RuntimeError(CLOSED)
            self._claim()
        try:
            self._begin()
            if self._interrupt:
                self._interruption.guard(task)
                if self.cancelled.is_set():  # not at once: a task is cancelled where it waits
                    self._loop.call_soon(self._interrupt_work)
        except BaseException:  # KeyboardInterrupt, after which __aexit__ is not called
            self.abandon()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        was_interrupted = self._interruption.leave(error)
        if isinstance(error, GeneratorExit):  # a coroutine that is thrown away cannot await
            self.abandon(error)
            return False
        if was_interrupted:
            error = OperationCancelled(f"operation {self.id} is cancelled, or has ended")
        outcome = self._given if error is None else self._status_of(error)
        if outcome is None:
            log.error("operation %s: the work ended without a result", self.id)
            outcome = _NO_RESULT
        self._trace = current_or(self.traceparent)
        # Shielded: a service that is being stopped still says how its operations ended.
        await asyncio.shield(self.end(outcome))
        return isinstance(error, OperationCancelled | Failed)

    async def _run(self, function: Callable[..., Awaitable[Any]], *args: Any, **kw: Any) -> None:
        try:
            with continued(self.traceparent):
                async with self:
                    self.raise_if_cancelled()
                    self.complete(await function(self, *args, **kw))
        except Exception:  # noqa: BLE001 - logged and turned into the operation's error on leaving
            return

    def _status_of(self, error: BaseException) -> Status:
        """The status of an exception: its text only when it is one of ours."""
        if isinstance(error, Failed):
            return error.status
        if isinstance(error, OperationCancelled):
            if self.operation.error.code == Code.CANCELLED:
                return self.operation.error  # as readers have seen it since the Cancel
            # The server hides it until done, or the answer to an older Renew came after it.
            return _CANCELLED
        if isinstance(error, Exception) or is_cancelled_by_nobody(error):
            log.error("operation %s failed", self.id, exc_info=error)
            return _UNEXPECTED
        return _STOPPED  # CancelledError and the like: the service is going down

    async def _end(self, outcome: Outcome) -> None:
        try:
            await _cancel(self._watching)
            # The lease is renewed while this is retried, lest it lapse before the server is back.
            if self._phase is not Phase.ENDED:
                await self._send(outcome)
        finally:
            self._phase = Phase.ENDED
            await _cancel(self._renewing)
            if (end := self._unended.pop(self, None)) is not None:
                end.set_result(None)

    async def _send(self, outcome: Outcome) -> None:
        # What the server finds malformed, a payload too large perhaps, is not to make an orphan.
        metadata = self._metadata
        for said, shown in ((outcome, metadata), (outcome, None), (_REFUSED, None)):
            try:
                self.operation = await self._calls.end(said, shown, self._trace)
            except grpc.aio.AioRpcError as error:
                log.warning(
                    "operation %s: its result was not taken: %s: %s",
                    self.id,
                    error.code().name,
                    error.details(),
                )
                if is_malformed(error):
                    continue
                await self._note_refusal(error)
            return

    async def _watch_for_cancel(self) -> None:
        revision = -1
        while self._phase is not Phase.ENDED:
            asked = 0.0
            try:
                async with aclosing(self._calls.watch()) as records:
                    async for record in records:
                        if record.revision <= revision:
                            continue  # the server repeats what is old, so that the stream is not quiet
                        revision = record.revision
                        self.operation = record.operation
                        if record.operation.done:
                            self._phase = Phase.ENDED
                        if record.operation.done or record.HasField("cancel_requested_at"):
                            self._set_cancelled()
                            return
            except grpc.aio.AioRpcError as error:
                if not is_transient_for_work(error):
                    return
                asked = retry_delay(error)
            await asyncio.sleep(max(asked, _WATCH_AGAIN_SECONDS * jitter.uniform(0.5, 1)))

    async def _renew_until_ended(self) -> None:
        interval = self._lease.total_seconds() / _RENEWALS_PER_LEASE
        interval = min(interval, _LONGEST_RENEWAL_SECONDS)
        while True:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reported.wait(), interval)
                await asyncio.sleep(min(_REPORT_SECONDS, interval))
            if self._phase is Phase.ENDED:
                return
            try:
                await self._renew()
            except Exception:  # whatever it is, the lease must not lapse for it
                log.exception("operation %s: its lease was not renewed", self.id)

    async def _renew(self) -> None:
        self._reported.clear()
        progress, metadata = self._progress, self._metadata
        # One that only keeps the lease belongs to no trace: over hours these would bury what is there.
        is_report = progress is not None or metadata is not None
        trace = self._trace if is_report else ()
        try:
            renewed = await self._calls.renew(progress, metadata, trace)
        except grpc.aio.AioRpcError as error:
            if is_transient_for_work(error):
                self._reported.set()  # renew again soon: the lease may be about to lapse
            else:
                log.warning(
                    "operation %s: its lease was not renewed: %s: %s",
                    self.id,
                    error.code().name,
                    error.details(),
                )
                await self._note_refusal(error)
            return
        self.operation = renewed.operation
        if self._progress is progress:
            self._progress = None
        if self._metadata is metadata:
            self._metadata = None
        if renewed.cancel_requested:
            self._set_cancelled()

    async def _note_refusal(self, refusal: grpc.aio.AioRpcError) -> None:
        """If it says that the operation has ended, reads how."""
        if is_malformed(refusal):
            self._progress = self._metadata = None  # renew without
        if refusal.code() not in _MEANS_ENDED:
            return
        self._phase = Phase.ENDED
        if refusal.code() == grpc.StatusCode.FAILED_PRECONDITION:
            try:
                self.operation = await self._calls.get(self._trace)
            except grpc.aio.AioRpcError as error:
                log.warning("operation %s: its end was not read: %s", self.id, error.details())
        self._set_cancelled()

    def _set_cancelled(self, *, interrupt: bool = True) -> None:
        """Tells the work, once. `interrupt` is False when who calls cancels its task themselves."""
        if self.cancelled.is_set():
            return
        self.cancelled.set()
        for callback in self._callbacks:
            self._call_back(callback)
        if interrupt:
            self._interrupt_work()

    def _interrupt_work(self) -> None:
        if self._interruption.interrupt():
            self._loop.call_later(self._cancel_grace.total_seconds(), self._overstay)

    def _overstay(self) -> None:
        """The time for cleaning up is over: whatever still runs has swallowed its cancellation."""
        if self._interruption.is_pending:
            log.error("operation %s: the work did not stop when it was cancelled", self.id)
            self.end(_OVERSTAYED)

    def _call_back(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("operation %s: a callback of on_cancelled failed", self.id)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
