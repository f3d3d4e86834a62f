"""Calls to opservice that outlive its restarts.

Every write of ProducerService may be repeated: a Start has its idempotency key, everything else its
lease token. So whenever an answer was lost, the call is made again and the server says what is true.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from opservice_client._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice_client._proto.opservice.v1.operation_record_service_pb2 import (
    WatchOperationRecordRequest,
)
from opservice_client.retries import is_transient, retry_delay
from opservice_client.stubs import Stubs
from opservice_client.targets import is_loopback

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Metadata = Sequence[tuple[str, str | bytes]]

_WATCHES_PER_CONNECTION = 90
"""A server's default lets 100 calls be in progress on one connection."""

_ATTEMPT_SECONDS = 10.0
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 2.0

_CHANNEL_OPTIONS = [
    # By default a channel that lost its server tries again only every two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    # Each channel has connections of its own, and so streams of its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
]


def _channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    # A proxy, which gRPC takes from the environment, would see the token on its way to this machine.
    options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not is_loopback(target)))]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


class Connection:
    """Channels to opservice, the stubs on them, and calls with retries.

    `credentials` make it TLS; `metadata` goes with every call, such as an `authorization`.
    """

    def __init__(
        self, target: str, credentials: grpc.ChannelCredentials | None, metadata: Metadata
    ) -> None:
        self._new_channel = partial(_channel, target, credentials)
        self.channel = self._new_channel()
        # There is a watch for each operation that runs; their streams must not keep renewals waiting, nor
        # each other: a server lets only so many be open on one connection.
        self._watches: list[tuple[grpc.aio.Channel, asyncio.Semaphore]] = []
        self.metadata = tuple(metadata)
        self.stubs = Stubs(self.channel)

    async def close(self) -> None:
        await self.channel.close()
        for channel, _ in self._watches:
            await channel.close()

    async def watch(self, operation_id: str) -> AsyncGenerator[OperationRecord]:
        """The operation as it becomes. Raises AioRpcError."""
        channel, free = self._channel_for_a_watch()
        async with free:
            request = WatchOperationRecordRequest(operation_id=operation_id)
            records = Stubs(channel).watch(request, metadata=self.metadata)
            try:
                async for record in records:
                    yield record
            finally:
                records.cancel()

    def _channel_for_a_watch(self) -> tuple[grpc.aio.Channel, asyncio.Semaphore]:
        for each in self._watches:
            if not each[1].locked():
                return each
        self._watches.append((self._new_channel(), asyncio.Semaphore(_WATCHES_PER_CONNECTION)))
        return self._watches[-1]

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        give_up_after: timedelta,
        transient: Callable[[grpc.RpcError], bool] = is_transient,
    ) -> Response:
        """Raises AioRpcError: the server's refusal at once, a transient error after this long."""

        gives_up_at = time.monotonic() + give_up_after.total_seconds()
        attempt_seconds = min(_ATTEMPT_SECONDS, give_up_after.total_seconds())
        pause, last = _FIRST_WAIT_SECONDS, False
        while True:
            try:
                return await method(request, timeout=attempt_seconds, metadata=self.metadata)
            except grpc.aio.AioRpcError as error:
                if last or not transient(error):
                    raise
                left = max(0.0, gives_up_at - time.monotonic())
                next_try = max(retry_delay(error), pause * random.uniform(0.5, 1))
                last = next_try >= left
            await asyncio.sleep(min(next_try, left))
            pause = min(2 * pause, _LONGEST_WAIT_SECONDS)
