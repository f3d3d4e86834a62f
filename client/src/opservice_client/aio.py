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
            await asyncio.sleep(1)  # raises asyncio.CancelledError when the operation is cancelled
        return Registry(...)
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from opservice_client import processes
from opservice_client._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice_client._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
)
from opservice_client._proto.opservice.v1.producer_service_pb2 import (
    RenewRequest,
    RenewResponse,
    StartResponse,
)
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from opservice_client.connection import (
    DEFAULT_LEASE,
    CallMetadata,
    Connection,
    Method,
    Request,
    Response,
    Token,
    attempt_seconds,
)
from opservice_client.errors import CallFailed, StartFailed
from opservice_client.payloads import Encoder, encode
from opservice_client.requests import StartOptions, idempotency_key, start_request
from opservice_client.targets import is_loopback
from opservice_client.traces import current, current_or, traceparent_of
from opservice_client.work import CLOSED, Work

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Producer", "StartOptions", "Work", "idempotency_key"]

_SHORTEST_START_ATTEMPT_SECONDS = 1.0
_SHORTEST_LEASE = timedelta(seconds=1)
_ATTEMPTS = 5
"""How many times a call without a lease is tried within `start_timeout`, if none is answered."""

log: logging.Logger = logging.getLogger("opservice_client")


class Producer:
    """Starts operations, and sees that each ends whose work is begun. Make one for a service's life.

    It may be made at any time, also at import and before a fork: it connects on first use, and anew on
    each event loop that uses it.

    `target` is opservice's address, as gRPC takes it. Several replicas may stand behind it: a name with
    several records in DNS (`dns:///name:port`), or `ipv4:10.0.0.1:50051,10.0.0.2:50051`. Calls take turns
    among those that answer.
    `credentials` make it TLS. `token` is sent as `authorization: Bearer`; a function is called for each
    attempt, in a thread unless it is a coroutine function. `tls_server_name` is the name to expect in the
    server's certificate, unless it is that of `target`. `call_metadata` goes with every call; with a
    `traceparent` there, no other is sent.
    `start_timeout` bounds how long a Start is retried, and `resume`, `get` and `cancel`; `result_timeout` how
    long a result is.
    `cancel_grace` is how long work that is interrupted may take to clean up: past it the operation ends
    with ABORTED, whatever the work does. `encode` makes messages of results and metadata; see
    opservice_client.encode.

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
        cancel_grace: timedelta = timedelta(seconds=30),
        encode: Encoder = encode,
    ) -> None:
        if token is not None and credentials is None and not is_loopback(target):
            raise ValueError(
                f"a token is not sent to {target} in plaintext: give credentials, for TLS"
            )
        self._target = target
        self._credentials = credentials
        self._token = token
        self._tls_server_name = tls_server_name
        self._call_metadata = call_metadata
        self._start_timeout = start_timeout
        self._result_timeout = result_timeout
        self._cancel_grace = cancel_grace
        self._encode = encode
        self._closed = False
        self._sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Session]
        self._sessions = weakref.WeakKeyDictionary()
        processes.tell_after_fork(self, Producer._forget)

    async def start(self, *, interrupt: bool = True, **options: Unpack[StartOptions]) -> Work:
        """Starts an operation: durable when this returns, so its id may be handed out.

        `interrupt=False` is for work that polls `work.cancelled`: its task is not cancelled when the
        operation is. Begin the work at once: the lease is renewed from then on.

        Raises StartFailed when opservice refuses, or is not reached within `start_timeout`; TypeError and
        ValueError for options that cannot be sent; RuntimeError once closed, and in a forked process in
        which gRPC does not work.
        """
        request = start_request(options, self._encode)
        session = self._session()
        lease = options.get("lease", DEFAULT_LEASE)
        session.connection.expect(lease)
        context = options.get("context")
        callers = traceparent_of(context.invocation_metadata()) if context else ""
        try:
            started = await session.connection.call(
                lambda stubs: stubs.start,
                request,
                within=self._start_timeout,
                attempt=max(attempt_seconds(lease), _SHORTEST_START_ATTEMPT_SECONDS),
                trace=current_or(callers),
            )
        except grpc.aio.AioRpcError as error:
            raise StartFailed(error, self._target) from error
        return self._work(session, started, request.lease_token, lease, interrupt)

    async def resume(self, operation_id: str, lease_token: str, *, interrupt: bool = True) -> Work:
        """The work of an operation that another process started, and does not work on itself.

        It is called with that work's `id` and `lease_token`, and renews the lease: for a worker of a queue,
        and for the one that comes after a worker that was killed. If the operation was cancelled or has
        ended meanwhile, `cancelled` is set. Whoever has the token can end the operation: only one process
        may work on it at a time.

        Raises CallFailed when opservice refuses, as it does with another token, or is not reached within
        `start_timeout`; RuntimeError as `start` does.
        """
        session = self._session()
        try:
            renewed = await self._call(
                session,
                lambda stubs: stubs.renew,
                RenewRequest(operation_id=operation_id, lease_token=lease_token),
            )
        except CallFailed as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            renewed = RenewResponse(operation=await self.get(operation_id))
        lease = _lease_of(renewed)
        session.connection.expect(lease)
        started = StartResponse(
            operation=renewed.operation,
            owned=True,
            record=await self._record(session, operation_id, attempt_seconds(lease)),
        )
        return self._work(session, started, lease_token, lease, interrupt)

    async def get(self, operation_id: str) -> Operation:
        """The operation, for a service whose clients ask it and not opservice.

        With the producer's credentials, not with theirs: look at `created_by` first, or at what else says
        whose it is. Raises CallFailed: NOT_FOUND, or opservice is not reached within `start_timeout`.
        """
        request = GetOperationRequest(operation_id=operation_id)
        return await self._call(self._session(), lambda stubs: stubs.get, request)

    async def cancel(self, operation_id: str) -> Operation:
        """Cancels the operation, as its `cancel_policy` has it. One that is done stays as it is.

        With the producer's credentials, as `get`. Raises CallFailed: NOT_FOUND, FAILED_PRECONDITION when it
        cannot be cancelled, or opservice is not reached within `start_timeout`.
        """
        request = CancelOperationRequest(operation_id=operation_id)
        return await self._call(self._session(), lambda stubs: stubs.cancel, request)

    async def close(self, grace: timedelta = timedelta(0)) -> None:
        """Waits up to `grace` for running work, fails what is left with ABORTED, and disconnects.

        Work that is cancelled for it has ten seconds to clean up. What opservice cannot be told of within
        ten seconds more ends when its lease lapses.

        Raises RuntimeError when a function given to `run` calls it: it would wait for itself.
        """
        session = self._sessions.get(asyncio.get_running_loop())
        for work in session.unended if session else ():
            work.check_closable()
        self._closed = True
        if session is None:
            return
        del self._sessions[asyncio.get_running_loop()]
        if session.unended:
            await asyncio.wait(session.unended.values(), timeout=grace.total_seconds())
        session.connection.is_closing = True
        # The newest first: what waits for a thread must not get that of another which is stopped.
        await asyncio.gather(*(work.stop() for work in reversed(session.unended)))
        await session.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _work(
        self,
        session: _Session,
        started: StartResponse,
        token: str,
        lease: timedelta,
        interrupt: bool,
    ) -> Work:
        return Work(
            session.connection,
            started,
            session.unended,
            token=token,
            lease=lease,
            result_timeout=self._result_timeout,
            cancel_grace=self._cancel_grace,
            interrupt=interrupt,
            encode=self._encode,
        )

    async def _record(
        self, session: _Session, operation_id: str, seconds: float
    ) -> OperationRecord | None:
        """For the trace that it began in, without which the work goes on as well."""
        try:
            return await session.connection.call(
                lambda stubs: stubs.record,
                GetOperationRecordRequest(operation_id=operation_id),
                within=timedelta(seconds=seconds),
                attempt=seconds,
                trace=current(),
            )
        except grpc.aio.AioRpcError as error:
            log.info("operation %s: its trace was not read: %s", operation_id, error.details())
            return None

    async def _call(
        self, session: _Session, method: Method[Request, Response], request: Request
    ) -> Response:
        try:
            return await session.connection.call(
                method,
                request,
                within=self._start_timeout,
                attempt=self._start_timeout.total_seconds() / _ATTEMPTS,
                trace=current(),
            )
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error, self._target) from error

    def _forget(self) -> None:
        """Called in the child after a fork."""
        processes.keep(*self._sessions.values())
        self._sessions = weakref.WeakKeyDictionary()

    def _session(self) -> _Session:
        if self._closed:
            raise RuntimeError(CLOSED)
        processes.check_usable()
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            self._sessions[loop] = _Session(
                Connection(
                    self._target,
                    self._credentials,
                    self._token,
                    self._call_metadata,
                    self._tls_server_name,
                )
            )
        return self._sessions[loop]


class _Session:
    """What a producer has on one event loop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.unended: dict[Work, asyncio.Future[None]] = {}


def _lease_of(renewed: RenewResponse) -> timedelta:
    """Its length, by the server's clock alone; the shortest there is when that was set back meanwhile."""
    if not renewed.HasField("lease_expires_at"):
        return DEFAULT_LEASE  # it has none, or is done
    renewed_at = renewed.operation.modified_at.ToDatetime()
    return max(renewed.lease_expires_at.ToDatetime() - renewed_at, _SHORTEST_LEASE)
