"""Calls to opservice that outlive its restarts.

Every write of ProducerService may be repeated: a Start has its idempotency key, everything else its
lease token. So whenever an answer was lost, the call is made again and the server says what is true.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import grpc
import stamina
from google.protobuf.message import Message

from opservice._proto.opservice.v1.operation_record_service_pb2_grpc import (
    OperationRecordServiceStub,
)
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Metadata = Sequence[tuple[str, str | bytes]]

_ATTEMPT_SECONDS = 10.0
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 2.0

# CANCELLED is what a server that stops may answer; our own cancelling raises CancelledError instead.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)

_CHANNEL_OPTIONS = [
    # By default a channel that lost its server tries again only every two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
]


def is_transient(error: Exception) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in _TRANSIENT


class Connection:
    """A channel to opservice, the stubs on it, and calls with retries.

    `credentials` make it TLS; `metadata` goes with every call, such as an `authorization`.
    """

    def __init__(
        self, target: str, credentials: grpc.ChannelCredentials | None, metadata: Metadata
    ) -> None:
        self.channel = (
            grpc.aio.insecure_channel(target, _CHANNEL_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, _CHANNEL_OPTIONS)
        )
        self.metadata = tuple(metadata)
        self.producer = ProducerServiceStub(self.channel)
        self.operations = OperationServiceStub(self.channel)
        self.records = OperationRecordServiceStub(self.channel)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        give_up_after: timedelta,
    ) -> Response:
        """Raises AioRpcError: the server's refusal at once, a transient error after this long."""
        async for attempt in stamina.retry_context(
            on=is_transient,
            attempts=None,
            timeout=give_up_after,
            wait_initial=_FIRST_WAIT_SECONDS,
            wait_max=_LONGEST_WAIT_SECONDS,
        ):
            with attempt:
                return await method(request, timeout=_ATTEMPT_SECONDS, metadata=self.metadata)
        raise AssertionError("stamina raises when it gives up")
