"""Calls to opservice that outlive its restarts, and replicas that hang.

Every write of ProducerService may be repeated: a Start has its idempotency key, everything else its
lease token. So whenever an answer was lost, the call is made again and the server says what is true.

An attempt takes a sixth of the lease at most. After one that timed out the next is made on a fresh
connection, which a load balancer, DNS or the kernel may lead to another replica: the old connection may be
to a server that hangs, and it would be noticed too late. The fresh one may be to the same server again, so
several are tried within that attempt.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeAlias, TypeVar, Union

import grpc
import grpc.aio
from google.protobuf.message import Message

from opservice_client._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice_client._proto.opservice.v1.operation_record_service_pb2 import (
    WatchOperationRecordRequest,
)
from opservice_client.retries import is_transient, jitter, retry_delay
from opservice_client.stubs import Stubs, Unary
from opservice_client.targets import is_loopback
from opservice_client.traces import TRACEPARENT, Trace, entered

T = TypeVar("T")
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Method: TypeAlias = "Callable[[Stubs], Unary[Request, Response]]"
CallMetadata: TypeAlias = Sequence[tuple[str, "str | bytes"]]
Token: TypeAlias = Union[str, "Callable[[], str | Awaitable[str]]", None]

DEFAULT_LEASE = timedelta(seconds=60)
"""Long enough to outlast a database failover; an orphan is noticed as late as this."""

_WATCHES_PER_CONNECTION = 90
"""A server's default lets 100 calls be in progress on one connection."""

_ATTEMPTS_PER_LEASE = 6
_LONGEST_ATTEMPT_SECONDS = 10.0
_SHORTEST_ATTEMPT_SECONDS = 0.05
_FRESH_CONNECTIONS = 4
"""Tried within half an attempt. One server of two that hangs is met by all of them in 1 of 16 attempts."""
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 2.0

log: logging.Logger = logging.getLogger("opservice_client")


def attempt_seconds(lease: timedelta) -> float:
    """How long one attempt may take to reach the server: a sixth of the lease, 10 s at most."""
    return min(lease.total_seconds() / _ATTEMPTS_PER_LEASE, _LONGEST_ATTEMPT_SECONDS)


class GaveUp(grpc.aio.AioRpcError):
    """The last answer of several, all transient, when the time was over."""

    def __init__(self, last: grpc.aio.AioRpcError, attempts: int, seconds: float) -> None:
        super().__init__(
            last.code(), last.initial_metadata(), last.trailing_metadata(), last.details()
        )
        self.attempts = attempts
        self.seconds = seconds


class Connection:
    """Channels to opservice from one event loop, the stubs on them, and calls with retries.

    `token` is sent as `authorization: Bearer`, and asked for anew for each attempt when it is a function;
    `call_metadata` goes with every call. If it has a `traceparent`, no other is sent.
    """

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        token: Token,
        call_metadata: CallMetadata,
        tls_server_name: str | None = None,
    ) -> None:
        self.is_closing: bool = False
        """No work is begun any more."""
        self._target = target
        self._credentials = credentials
        self._token = token
        self._call_metadata = tuple(call_metadata)
        self._has_trace = any(name == TRACEPARENT for name, _ in self._call_metadata)
        self._tls_server_name = tls_server_name
        self._keepalive = DEFAULT_LEASE
        self._calls: _Channel | None = None
        self._timed_out = False  # the attempt before did, so that connections are to be tried
        self._connecting = asyncio.Lock()
        # There is a watch for each operation that runs; their streams must not keep renewals waiting, nor
        # each other: a server lets only so many be open on one connection.
        self._watches: list[tuple[_Channel, asyncio.Semaphore]] = []
        self._outage = _Outage(target)
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        if self._calls is not None:
            await self._calls.close()
        for channel, _ in self._watches:
            await channel.close()
        await asyncio.gather(*self._closing)

    def expect(self, lease: timedelta) -> None:
        """Has servers that hang noticed early enough for this lease."""
        if lease < self._keepalive:
            self._keepalive = lease
            if self._calls is not None:
                self._replace(self._calls)

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        within: timedelta,
        attempt: float,
        transient: Callable[[grpc.RpcError], bool] = is_transient,
        trace: Trace = (),
    ) -> Response:
        """Each attempt takes at most `attempt` seconds, and all take no longer than `within`.

        They belong to `trace`, or to none. Raises AioRpcError: the server's refusal at once, and GaveUp when
        the time is over.
        """
        began = time.monotonic()
        left = within.total_seconds()
        pause, is_last, attempts = _FIRST_WAIT_SECONDS, False, 0
        with self._outage.noted() as failing:
            while True:
                attempts += 1
                try:
                    return await self._attempt(method, request, min(attempt, left), trace)
                except grpc.aio.AioRpcError as error:
                    if not transient(error):
                        raise
                    failing(error)
                    tried = time.monotonic() - began
                    left = within.total_seconds() - tried
                    if is_last or left <= 0:
                        raise GaveUp(error, attempts, tried) from error
                    next_try = max(retry_delay(error), pause * jitter.uniform(0.5, 1))
                    is_last = next_try >= left
                await asyncio.sleep(left / 2 if is_last else next_try)
                left = within.total_seconds() - (time.monotonic() - began)
                pause = min(2 * pause, _LONGEST_WAIT_SECONDS)

    async def _attempt(
        self, method: Method[Request, Response], request: Request, seconds: float, trace: Trace
    ) -> Response:
        """Raises AioRpcError, and has the next attempt made on a new connection when this timed out."""
        began = time.monotonic()
        channel = self._calls or await self._connect(seconds)
        try:
            with self._in_use(channel):
                seconds = max(seconds - (time.monotonic() - began), _SHORTEST_ATTEMPT_SECONDS)
                metadata = await self._metadata(seconds, trace)
                with entered(trace):  # for what instruments gRPC, and sends its own instead
                    answer = method(channel.stubs)(request, timeout=seconds, metadata=metadata)
                return await answer
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                self._timed_out = True
                self._replace(channel)
            raise

    async def _connect(self, seconds: float) -> _Channel:
        """The channel for calls, within half of `seconds`. Calls that need one meanwhile wait for the same.

        After an attempt that timed out it is the first of several that a server answers on; else, or when
        none does, it connects with its first call, which then says why it cannot.
        """
        async with self._connecting:
            for _ in range(_FRESH_CONNECTIONS if self._timed_out and self._calls is None else 0):
                tried, is_ready = self._new_channel(), False
                try:
                    is_ready = await tried.is_ready_within(seconds / 2 / _FRESH_CONNECTIONS)
                finally:
                    if not is_ready:
                        await tried.close()
                if is_ready:
                    self._calls = tried
                    break
            self._timed_out = False
            if self._calls is None:
                self._calls = self._new_channel()
            return self._calls

    async def watch(self, operation_id: str) -> AsyncGenerator[OperationRecord, None]:
        """The operation as it becomes. Raises AioRpcError."""
        channel, free = self._channel_for_a_watch()
        async with free:
            metadata = await self._metadata(_LONGEST_ATTEMPT_SECONDS)
            with entered(()):
                records = channel.stubs.watch(
                    WatchOperationRecordRequest(operation_id=operation_id), metadata=metadata
                )
            try:
                async for record in records:
                    yield record
            finally:
                records.cancel()

    def _channel_for_a_watch(self) -> tuple[_Channel, asyncio.Semaphore]:
        for each in self._watches:
            if not each[1].locked():
                return each
        self._watches.append((self._new_channel(), asyncio.Semaphore(_WATCHES_PER_CONNECTION)))
        return self._watches[-1]

    async def _metadata(self, seconds: float, trace: Trace = ()) -> CallMetadata:
        """Raises AioRpcError, UNAUTHENTICATED, when there is no token to be had within this time."""
        metadata = self._call_metadata if self._has_trace else (*self._call_metadata, *trace)
        if self._token is None:
            return metadata
        token: object = self._token
        if callable(token):
            try:
                token = await asyncio.wait_for(_called(token), seconds)
            except Exception as error:
                raise _unauthenticated(f"the token could not be had: {error!r}") from error
        if not isinstance(token, str):
            raise _unauthenticated(f"the token is a {type(token).__name__}, not a str")
        return (*metadata, ("authorization", f"Bearer {token}"))

    def _new_channel(self) -> _Channel:
        milliseconds = int(attempt_seconds(self._keepalive) * 1000)
        options: list[tuple[str, str | int]] = [
            # By default a channel that lost its server tries again only every two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # A server that is dead is noticed within a third of the lease.
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", milliseconds),
            ("grpc.http2.max_pings_without_data", 0),
            # Each channel has connections of its own, and so streams of its own.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
            # A proxy, which gRPC takes from the environment, would see the token on its way to this machine.
            ("grpc.enable_http_proxy", int(not is_loopback(self._target))),
        ]
        if self._credentials is None:
            return _Channel(grpc.aio.insecure_channel(self._target, options))
        if self._tls_server_name:
            options.append(("grpc.ssl_target_name_override", self._tls_server_name))
        return _Channel(grpc.aio.secure_channel(self._target, self._credentials, options))

    def _replace(self, channel: _Channel) -> None:
        """Has the next call made on a new connection. Calls in progress on this one go on."""
        if self._calls is channel:
            self._calls = None
            self._close_if_unused(channel)

    @contextmanager
    def _in_use(self, channel: _Channel) -> Generator[None, None, None]:
        channel.calls += 1
        try:
            yield
        finally:
            channel.calls -= 1
            self._close_if_unused(channel)

    def _close_if_unused(self, channel: _Channel) -> None:
        if channel is not self._calls and not channel.calls:
            task = asyncio.create_task(channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class _Channel:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.stubs = Stubs(channel)
        self.calls = 0
        """How many are in progress, but for watches."""

    async def is_ready_within(self, seconds: float) -> bool:
        """Whether a server has answered on the connection by then."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def close(self) -> None:
        await self._channel.close()


class _Outage:
    """Logs an outage when it begins and when it is over, however many calls fail meanwhile."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._since: float | None = None
        self._failing: set[object] = set()
        """The calls that have failed and are being repeated."""

    @contextmanager
    def noted(self) -> Generator[Callable[[grpc.aio.AioRpcError], None], None, None]:
        """Around a call with its repetitions; gives what is to be told of each failure."""
        call = object()

        def failing(error: grpc.aio.AioRpcError) -> None:
            self._failing.add(call)
            if self._since is None:
                self._since = time.monotonic()
                log.warning(
                    "%s does not answer (%s: %s); calls are repeated until it does",
                    self._target,
                    error.code().name,
                    error.details(),
                )

        try:
            yield failing
        except BaseException:
            self._failing.discard(call)
            raise
        self._failing.discard(call)
        if self._since is not None and not self._failing:
            seconds, self._since = time.monotonic() - self._since, None
            log.warning("%s answers again, after %.1f s", self._target, seconds)


async def _called(token: Callable[[], str | Awaitable[str]]) -> object:
    """A function that may wait for a network is called in a thread, a coroutine function here."""
    fetched: str | Awaitable[str]
    if inspect.iscoroutinefunction(token):
        fetched = token()
    else:
        fetched = await _called_in_thread(token)
    return fetched if isinstance(fetched, str) else await fetched


async def _called_in_thread(function: Callable[[], T]) -> T:
    try:
        calling = asyncio.get_running_loop().run_in_executor(None, function)
    except RuntimeError:  # there are no threads when the interpreter ends
        return function()
    return await calling


def _unauthenticated(details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAUTHENTICATED, grpc.aio.Metadata(), grpc.aio.Metadata(), details
    )
