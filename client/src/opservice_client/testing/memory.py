"""A server in memory, for tests where opservice is not installed.

It speaks gRPC as the real one does, and has those of its methods that producers and their callers use:
all of ProducerService, OperationService and OperationRecordService, but no filters. Whatever else is asked of
it is UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code

from opservice_client._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice_client._proto.opservice.v1.operation_record_service_pb2 import (
    BatchGetOperationRecordsRequest,
    BatchGetOperationRecordsResponse,
    BatchWatchOperationRecordsRequest,
    DeleteOperationRecordRequest,
    GetOperationRecordRequest,
    ListOperationRecordsRequest,
    ListOperationRecordsResponse,
    OperationRecordEvent,
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice_client._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    FailRequest,
    RenewRequest,
    StartRequest,
    StartResponse,
)
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from opservice_client.testing.checks import (
    LARGEST_BATCH,
    SECOND,
    Check,
    batch_too_large,
    check_id,
    check_ids,
    payload_bytes,
    wait_seconds,
)
from opservice_client.testing.following import Following
from opservice_client.testing.operations import Entry, Operations
from opservice_client.testing.refusals import Refusal, stopping, unimplemented
from opservice_client.testing.tokens import place_of, token_of
from opservice_client.traces import traceparent_of

Request = TypeVar("Request", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"

_MICROSECOND = timedelta(microseconds=1)
_SWEEP_SECONDS = 0.25
_DRAIN_SECONDS = 1.0
_WATCH_REPEAT_SECONDS = 30.0
_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000
_PAGE_BYTES = 1 << 20
"""After so many a page ends, with the record that goes beyond it: clients take 4 MiB."""
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


class MemoryServer:
    """Listens on a Unix socket in the directory, which should be private and empty."""

    def __init__(self, directory: Path, *, cancel_grace: timedelta) -> None:
        self.target: str = f"unix:{directory}/socket"
        self._operations = Operations(cancel_grace // _MICROSECOND)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serves until `stop` is set. `ready` is called once it does. Raises RuntimeError when it cannot."""
        self._loop = asyncio.get_running_loop()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Methods(self._operations),))
        server.add_insecure_port(self.target)
        await server.start()
        sweeping = asyncio.create_task(self._keep_sweeping())
        try:
            ready()
            await stop.wait()
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            self._operations.stop()
            await server.stop(_DRAIN_SECONDS)

    def advance(self, by: timedelta) -> None:
        """Moves the clock on. What becomes due in that time is done when this returns, second by second.

        To be called while it serves, from any thread but the server's.
        """
        assert self._loop is not None

        async def advance() -> None:
            self._operations.advance(by // _MICROSECOND)

        asyncio.run_coroutine_threadsafe(advance(), self._loop).result()

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._operations.sweep()


class _Methods(grpc.GenericRpcHandler):
    """What is served: each method by its path, and a refusal for every other path."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        producer = "/opservice.v1.ProducerService/"
        records = "/opservice.v1.OperationRecordService/"
        yandex = "/yandex.cloud.operation.OperationService/"
        self._handlers = {
            producer + "Start": _unary(StartRequest, self._start),
            producer + "Renew": _at_once(RenewRequest, operations.renew),
            producer + "Complete": _at_once(CompleteRequest, operations.complete),
            producer + "Fail": _at_once(FailRequest, operations.fail),
            yandex + "Get": _unary(GetOperationRequest, self._get),
            yandex + "Cancel": _at_once(CancelOperationRequest, self._cancel),
            records + "Get": _at_once(GetOperationRecordRequest, self._get_record),
            records + "BatchGet": _at_once(BatchGetOperationRecordsRequest, self._batch_get),
            records + "List": _at_once(ListOperationRecordsRequest, self._list),
            records + "Delete": _at_once(DeleteOperationRecordRequest, self._delete),
            records + "Wait": _unary(WaitOperationRecordRequest, self._wait),
            records + "Watch": _streaming(WatchOperationRecordRequest, self._watch),
            records + "BatchWatch": _streaming(
                BatchWatchOperationRecordsRequest, self._batch_watch
            ),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        method: str = handler_call_details.method
        return self._handlers.get(method) or _refusing(unimplemented(method))

    async def _start(self, request: StartRequest, context: Context) -> StartResponse:
        return self._operations.start(request, traceparent_of(context.invocation_metadata()))

    async def _get(self, request: GetOperationRequest, context: Context) -> Operation:
        entry = self._find(request)
        operation = entry.record.operation
        if not operation.done:
            age = (self._operations.now() - operation.created_at.ToMicroseconds()) // SECOND
            seconds = max(1, min(10, age // 20))
            await context.send_initial_metadata((("x-operation-poll-interval", str(seconds)),))
        return operation

    def _cancel(self, request: CancelOperationRequest) -> Operation:
        check_id(request.operation_id)
        return self._operations.cancel(request.operation_id)

    def _get_record(self, request: GetOperationRecordRequest) -> OperationRecord:
        return self._find(request).record

    def _batch_get(
        self, request: BatchGetOperationRecordsRequest
    ) -> BatchGetOperationRecordsResponse:
        check_ids(request.operation_ids)
        answer = BatchGetOperationRecordsResponse()
        ids = list(dict.fromkeys(request.operation_ids))
        size = 0
        for id_ in ids:
            try:
                record = self._operations.find(id_).record
            except Refusal:
                answer.not_found_ids.append(id_)
                continue
            size += payload_bytes(record)
            if size > LARGEST_BATCH and len(ids) > 1:
                raise batch_too_large()
            answer.operation_records.append(record)
        return answer

    def _delete(self, request: DeleteOperationRecordRequest) -> Empty:
        check_id(request.operation_id)
        self._operations.delete(request.operation_id)
        return Empty()

    async def _wait(self, request: WaitOperationRecordRequest, context: Context) -> OperationRecord:
        check_id(request.operation_id)
        timeout = request.timeout if request.HasField("timeout") else None
        seconds = wait_seconds(timeout, context.time_remaining())
        entry = self._operations.find(request.operation_id)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_done(entry), seconds)
        return entry.record

    async def _until_done(self, entry: Entry) -> None:
        while not (entry.done or self._operations.is_stopping):
            await entry.changed.wait()

    async def _watch(
        self, request: WatchOperationRecordRequest, _context: Context
    ) -> AsyncIterator[OperationRecord]:
        entry = self._find(request)
        while True:
            changed = entry.changed
            yield entry.record
            if entry.done:
                return
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), _WATCH_REPEAT_SECONDS)
            if self._operations.is_stopping:
                raise stopping()

    def _batch_watch(
        self, request: BatchWatchOperationRecordsRequest, _context: Context
    ) -> AsyncIterator[OperationRecordEvent]:
        return Following(self._operations, request).events(_WATCH_REPEAT_SECONDS)

    def _list(self, request: ListOperationRecordsRequest) -> ListOperationRecordsResponse:
        if request.filter:
            raise unimplemented("filters")
        check = Check()
        if request.parent != "-":
            check.parent(request.parent)
        if request.page_size < 0:
            check.wrong("page_size", "must not be negative")
        asked = ("List", request.parent)
        after = _place_after(request.page_token, asked)
        if request.page_token and after is None:
            known = "is not one that this server gave for this parent and filter"
            check.wrong("page_token", known)
        check.finish()
        listed = [
            entry
            for entry in self._operations.of_parent(request.parent)
            if after is None or entry.place < after
        ]
        page = ListOperationRecordsResponse()
        size = min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
        for index, entry in enumerate(listed):
            if len(page.operation_records) == size or page.ByteSize() > _PAGE_BYTES:
                created_at, id_ = listed[index - 1].place
                page.next_page_token = token_of(f"{created_at} {id_}", asked)
                break
            page.operation_records.append(entry.record)
        return page

    def _find(
        self, request: GetOperationRequest | GetOperationRecordRequest | WatchOperationRecordRequest
    ) -> Entry:
        check_id(request.operation_id)
        return self._operations.find(request.operation_id)


def _at_once(kind: type[Request], method: Callable[[Request], Message]) -> Handler:
    async def answer(request: Request, _context: Context) -> Message:
        return method(request)

    return _unary(kind, answer)


def _unary(
    kind: type[Request], method: Callable[[Request, Context], Awaitable[Message]]
) -> Handler:
    async def handle(request: bytes, context: Context) -> bytes:
        try:
            return (await method(_decoded(kind, request), context)).SerializeToString()
        except Refusal as refusal:
            return await _abort(context, refusal)

    return grpc.unary_unary_rpc_method_handler(handle)


def _streaming(
    kind: type[Request], method: Callable[[Request, Context], AsyncIterator[Message]]
) -> Handler:
    async def handle(request: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            async for message in method(_decoded(kind, request), context):
                yield message.SerializeToString()
        except Refusal as refusal:
            await _abort(context, refusal)

    return grpc.unary_stream_rpc_method_handler(handle)


def _refusing(refusal: Refusal) -> Handler:
    """For a method of any kind: of its requests none is read."""

    async def handle(_requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        await _abort(context, refusal)
        yield b""

    return grpc.stream_stream_rpc_method_handler(handle)


def _decoded(kind: type[Request], request: bytes) -> Request:
    try:
        return kind.FromString(request)
    except DecodeError:
        message = "The request is not a valid message of its type"
        raise Refusal(Code.INVALID_ARGUMENT, "MALFORMED_REQUEST", message) from None


async def _abort(context: Context, refusal: Refusal) -> bytes:
    status = refusal.status
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(_STATUS_CODES[status.code], status.message, details)
    return b""


def _place_after(token: str, asked: Sequence[str]) -> tuple[int, str] | None:
    """Where the page begins; None when the token is not one of this list."""
    place = place_of(token, asked)
    if place is None:
        return None
    created_at, id_ = place.split(" ")
    return int(created_at), id_
