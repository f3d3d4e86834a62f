"""Producing operations from an asyncio service.

producer = Producer("127.0.0.1:50051")

class RegistryService(RegistryServiceServicer):
    async def Create(self, request, context):
        work = await producer.start(
            description="Create registry",
            metadata=CreateRegistryMetadata(registry_id=registry_id),
            context=context,  # for the caller's idempotency-key
        )
        work.run(self._create, request)
        return work.operation

    async def _create(self, work, request):
        for step in range(10):
            work.report(Progress(done=step, total=10))
            work.raise_if_cancelled()
            ...
        return Registry(...)
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec

import grpc
from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice_client._proto.opservice.v1.operation_record_pb2 import Progress
from opservice_client._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    FailRequest,
    RenewRequest,
)
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice_client.connection import Connection, Metadata
from opservice_client.errors import Failed, OperationCancelled, StartFailed
from opservice_client.requests import (
    DEFAULT_LEASE,
    StartOptions,
    copied,
    idempotency_key,
    pack,
    start_request,
)
from opservice_client.retries import (
    ERROR_DOMAIN,
    is_malformed,
    is_transient,
    is_transient_for_results,
    retry_delay,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Producer", "StartOptions", "Work", "idempotency_key"]

P = ParamSpec("P")
Result = Message | None

_RENEWALS_PER_LEASE = 3
_LONGEST_RENEWAL_SECONDS = 30.0
_FAREWELL_SECONDS = 10.0
_REPORT_SECONDS = 0.5
"""Reports between two renewals are merged: each renewal is a durable write."""

_WATCH_AGAIN_SECONDS = 2.0

_STOPPED = Status(code=Code.ABORTED, message="The service was stopped")
_CANCELLED = Status(code=Code.CANCELLED, message="The operation was cancelled")
_CANCELLED.details.add().Pack(ErrorInfo(reason="OPERATION_CANCELLED", domain=ERROR_DOMAIN))
_REFUSED = Status(code=Code.INTERNAL, message="The result cannot be stored")
_MEANS_ENDED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)

log = logging.getLogger("opservice_client")


class Producer:
    """Starts operations, and sees that each ends whose work is begun. Make one for a service's life.

    `target` is opservice's address; several replicas may stand behind it (`dns:///name:port`).
    `start_timeout` bounds how long a Start is retried, `result_timeout` how long a result is.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        start_timeout: timedelta = timedelta(seconds=20),
        result_timeout: timedelta = timedelta(minutes=5),
    ) -> None:
        self._connection = Connection(target, credentials, metadata)
        self._start_timeout = start_timeout
        self._result_timeout = result_timeout
        self._unended: dict[Work, asyncio.Future[None]] = {}

    async def start(self, **options: Unpack[StartOptions]) -> Work:
        """Starts an operation: durable when this returns, so its id may be handed out.

        Raises StartFailed.
        """
        request = start_request(options)
        try:
            started = await self._connection.call(
                self._connection.stubs.start, request, self._start_timeout
            )
        except grpc.aio.AioRpcError as error:
            raise StartFailed(error) from error
        lease = options.get("lease", DEFAULT_LEASE)
        return Work(
            self._connection,
            self._result_timeout,
            self._unended,
            token=request.lease_token,
            lease=lease,
            operation=started.operation,
            owned=started.owned,
        )

    async def close(self, grace: timedelta = timedelta(0)) -> None:
        """Waits up to `grace` for running work, fails what is left with ABORTED, and disconnects.

        What opservice cannot be told of within ten seconds more ends when its lease lapses.
        """
        if self._unended:
            await asyncio.wait(self._unended.values(), timeout=grace.total_seconds())
        # The newest first: what waits for a thread must not get that of another which is stopped.
        await asyncio.gather(*(work.stop() for work in reversed(self._unended)))
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Work:
    """An operation that this process started, and the work that will end it.

    Either `run` a function in the background, or enter it and give the result in the block:

        async with work:
            work.complete(Registry(...))

    Until its end its lease is renewed. Whatever happens in between, the operation ends: with the
    result, with the Failed that was raised, or with INTERNAL when something else was raised or no
    result was given. Not `owned` means that another request with the same idempotency key owns the
    operation: then nothing is run, renewed or ended, only `operation` is there to be returned.
    """

    def __init__(
        self,
        connection: Connection,
        result_timeout: timedelta,
        unended: dict[Work, asyncio.Future[None]],
        *,
        token: str,
        lease: timedelta,
        operation: Operation,
        owned: bool,
    ) -> None:
        self.operation = operation
        self.owned = owned
        self.cancelled = asyncio.Event()
        """Set when Cancel was called, or the operation has ended without us, or the producer closes."""
        self._connection = connection
        self._result_timeout = result_timeout
        self._unended = unended
        self._token = token
        self._lease = lease
        self._ended = operation.done
        self._outcome: AnyPayload | Status | None = None
        self._reported = asyncio.Event()
        self._progress: Progress | None = None
        self._metadata: AnyPayload | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._on_cancelled: list[Callable[[], None]] = []
        if self._ended:
            self._set_cancelled()

    @property
    def id(self) -> str:
        return self.operation.id

    def run(
        self,
        function: Callable[Concatenate[Work, P], Awaitable[Result]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Runs `function(work, ...)` in the background; what it returns is the response.

        Does nothing unless `owned`, nor when it is cancelled before its turn.
        """
        if self.owned:
            self._task = asyncio.create_task(self._run(function, *args, **kwargs))
            self._note_begin()

    def report(self, progress: Progress | None = None, metadata: Message | None = None) -> None:
        """Shows how far the work is, within about half a second. Never waits.

        It is a hint: what the server refuses is logged and dropped, and the work goes on.
        """
        # Copies, for the work may go on to change what it has reported.
        if progress is not None:
            self._progress = copied(progress)
        if metadata is not None:
            self._metadata = pack(metadata)
        self._reported.set()

    def raise_if_cancelled(self) -> None:
        """Raises OperationCancelled once `cancelled` is set."""
        if self.cancelled.is_set():
            self.raise_cancelled()

    def raise_cancelled(self) -> NoReturn:
        raise OperationCancelled(f"operation {self.id} is cancelled, or has ended")

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """Calls back, on the event loop, when `cancelled` is set; at once if it is."""
        if self.cancelled.is_set():
            callback()
        else:
            self._on_cancelled.append(callback)

    def complete(self, response: Message | None = None) -> None:
        """Gives the result, which is sent on leaving the block. None is google.protobuf.Empty."""
        self._outcome = pack(Empty() if response is None else response)

    def fail(self, failure: Failed) -> None:
        """Gives the error, which is sent on leaving the block."""
        self._outcome = failure.status

    async def stop(self) -> None:
        """Fails the operation with ABORTED, unless its end is on the way: what closing does."""
        self._set_cancelled()
        if self._task is not None and self._ending is None:
            self._task.cancel()
        elif self._task is None:
            self._begin_end(_STOPPED)
        if (end := self._unended.get(self)) is not None:
            await asyncio.wait([end], timeout=_FAREWELL_SECONDS)
        await _cancel(self._ending)
        await _cancel(self._task)

    async def __aenter__(self) -> Self:
        if not self.owned:
            raise RuntimeError(f"operation {self.id} is owned by another: look at work.owned first")
        self._renewing = asyncio.create_task(self._renew_until_ended())
        self._watching = asyncio.create_task(self._watch_until_ended())
        self._note_begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        outcome = self._outcome if error is None else self._status_of(error)
        if outcome is None:
            outcome = Status(code=Code.INTERNAL, message="The work ended without a result")
            log.error("operation %s: the work ended without a result", self.id)
        # Shielded: a service that is being stopped still says how its operations ended.
        await asyncio.shield(self._begin_end(outcome))
        return isinstance(error, OperationCancelled | Failed)

    async def _run(self, function: Callable[..., Awaitable[Result]], *args: Any, **kw: Any) -> None:
        try:
            async with self:
                self.raise_if_cancelled()
                self.complete(await function(self, *args, **kw))
        except Exception:  # noqa: BLE001 - logged and turned into the operation's error on leaving
            return

    def _status_of(self, error: BaseException) -> Status:
        """The status of an exception: its text only when it is one of ours."""
        match error:
            case Failed():
                return error.status
            case OperationCancelled() if self.operation.error.code == Code.CANCELLED:
                return self.operation.error  # as readers have seen it since the Cancel
            case OperationCancelled():
                # The server hides it until done, or the answer to an older Renew came after it.
                return _CANCELLED
            case Exception():
                log.error("operation %s failed", self.id, exc_info=error)
                return Status(code=Code.INTERNAL, message="The operation failed unexpectedly")
            case _:  # CancelledError and the like: the service is going down
                return _STOPPED

    def _note_begin(self) -> None:
        """From here on the producer knows of this work: it does not close before its end."""
        if self not in self._unended:
            self._unended[self] = asyncio.get_running_loop().create_future()

    def _begin_end(self, outcome: AnyPayload | Status) -> asyncio.Task[None]:
        """The task that ends the operation. There is one only: what is said first counts."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(outcome))
        return self._ending

    async def _end(self, outcome: AnyPayload | Status) -> None:
        try:
            await _cancel(self._watching)
            # The lease is renewed while this is retried, lest it lapse before the server is back.
            if not self._ended:
                await self._send(outcome)
        finally:
            await _cancel(self._renewing)
            self._unended.pop(self).set_result(None)

    async def _send(self, outcome: AnyPayload | Status) -> None:
        # What the server finds malformed, a payload too large perhaps, is not to make an orphan.
        metadata = self._metadata
        for said, shown in ((outcome, metadata), (outcome, None), (_REFUSED, None)):
            try:
                self.operation = await self._say(said, shown)
            except grpc.aio.AioRpcError as error:
                log.warning("operation %s: its result was not taken: %s", self.id, error.details())
                if is_malformed(error):
                    continue
                await self._note_end(error)
            break
        self._ended = True

    def _say(
        self, outcome: AnyPayload | Status, metadata: AnyPayload | None
    ) -> Awaitable[Operation]:
        id_, token = self.id, self._token
        stubs, give_up_after = self._connection.stubs, self._result_timeout
        if isinstance(outcome, Status):
            fail = FailRequest(
                operation_id=id_, lease_token=token, error=outcome, metadata=metadata
            )
            return self._connection.call(stubs.fail, fail, give_up_after, is_transient_for_results)
        complete = CompleteRequest(
            operation_id=id_, lease_token=token, response=outcome, metadata=metadata
        )
        return self._connection.call(
            stubs.complete, complete, give_up_after, is_transient_for_results
        )

    async def _watch_until_ended(self) -> None:
        """Learns of a Cancel as soon as it happens; the next renewal would tell as well."""
        revision = 0
        while not self.cancelled.is_set():
            asked = 0.0
            try:
                async with aclosing(self._connection.watch(self.id)) as records:
                    async for record in records:
                        if record.revision <= revision:
                            continue  # the server repeats what is old, so that the stream is not quiet
                        revision = record.revision
                        self.operation = record.operation
                        self._ended = self._ended or record.operation.done
                        if record.operation.done or record.HasField("cancel_requested_at"):
                            self._set_cancelled()
                            return
            except grpc.aio.AioRpcError as error:
                if not is_transient(error):
                    return
                asked = retry_delay(error)
            await asyncio.sleep(max(asked, _WATCH_AGAIN_SECONDS * random.uniform(0.5, 1)))

    async def _renew_until_ended(self) -> None:
        interval = self._lease.total_seconds() / _RENEWALS_PER_LEASE
        interval = min(interval, _LONGEST_RENEWAL_SECONDS)
        while not self._ended:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reported.wait(), interval)
                await asyncio.sleep(min(_REPORT_SECONDS, interval))
            try:
                await self._renew()
            except Exception:  # whatever it is, the lease must not lapse for it
                log.exception("operation %s: its lease was not renewed", self.id)

    async def _renew(self) -> None:
        self._reported.clear()
        progress, metadata = self._progress, self._metadata
        request = RenewRequest(
            operation_id=self.id,
            lease_token=self._token,
            progress=progress,
            metadata=metadata,
        )
        try:
            renewed = await self._connection.call(
                self._connection.stubs.renew, request, self._lease
            )
        except grpc.aio.AioRpcError as error:
            log.warning("operation %s: its lease was not renewed: %s", self.id, error.details())
            if is_transient(error):
                self._reported.set()  # renew again soon: the lease may be about to lapse
            else:
                await self._note_end(error)
            return
        self.operation = renewed.operation
        if self._progress is progress:
            self._progress = None
        if self._metadata is metadata:
            self._metadata = None
        if renewed.cancel_requested:
            self._set_cancelled()

    def _set_cancelled(self) -> None:
        if not self.cancelled.is_set():
            self.cancelled.set()
            for callback in self._on_cancelled:
                callback()

    async def _note_end(self, refusal: grpc.aio.AioRpcError) -> None:
        """After a refusal: reads how the operation really ended, if that is what it says."""
        if is_malformed(refusal):
            self._progress = self._metadata = None  # renew without
        if refusal.code() not in _MEANS_ENDED:
            return
        self._ended = True
        self._set_cancelled()
        if refusal.code() == grpc.StatusCode.FAILED_PRECONDITION:
            get = GetOperationRequest(operation_id=self.id)
            try:
                self.operation = await self._connection.call(
                    self._connection.stubs.get, get, self._lease
                )
            except grpc.aio.AioRpcError as error:
                log.warning("operation %s: its end was not read: %s", self.id, error.details())


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
