"""What the client and the command line try again."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, NoReturn, cast

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from opservice_client._proto.opservice.v1.producer_service_pb2 import RenewRequest
from opservice_client.connection import Connection
from opservice_client.retries import is_transient, is_transient_for_results, retry_delay

OURS = ErrorInfo(domain="opservice", reason="ANY")
THEIRS = ErrorInfo(domain="elsewhere", reason="ANY")
CODES = grpc.StatusCode


def error(code: CODES, *details: Message, message: str = "") -> grpc.aio.AioRpcError:
    status = Status(code=code.value[0])
    for detail in details:
        status.details.add().Pack(detail)
    trailing = [("grpc-status-details-bin", status.SerializeToString())] if details else []
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=message
    )


def retry(seconds: int) -> RetryInfo:
    info = RetryInfo()
    info.retry_delay.FromSeconds(seconds)
    return info


@pytest.mark.parametrize(
    ("raised", "transient"),
    [
        (error(CODES.INTERNAL, message="Stream removed"), True),
        (error(CODES.INTERNAL, THEIRS), True),
        (error(CODES.INTERNAL, OURS), False),
        (error(CODES.CANCELLED), True),
        (error(CODES.UNKNOWN), True),
        (error(CODES.UNAVAILABLE), True),
        (error(CODES.RESOURCE_EXHAUSTED, OURS, retry(1)), True),
        (error(CODES.RESOURCE_EXHAUSTED, OURS), False),
        (error(CODES.RESOURCE_EXHAUSTED, message="Sent message larger than max (9 vs. 8)"), False),
        (error(CODES.UNKNOWN, message="Received http2 header with status: 413"), False),
        (error(CODES.INVALID_ARGUMENT, OURS), False),
        (error(CODES.NOT_FOUND), False),
    ],
    ids=str,
)
def test_the_server_says_what_may_be_tried_again_and_else_the_code(
    raised: grpc.aio.AioRpcError, transient: bool
) -> None:
    assert is_transient(raised) is transient


@pytest.mark.parametrize(("asked", "waited"), [(7, 7.0), (3_600, 60.0), (-1, 0.0)])
def test_the_delay_that_the_server_asks_for_is_kept_within_a_minute(
    asked: int, waited: float
) -> None:
    assert retry_delay(error(CODES.UNAVAILABLE, OURS, retry(asked))) == waited


def test_details_that_cannot_be_read_are_none() -> None:
    broken = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff"))
    raised = grpc.aio.AioRpcError(CODES.INTERNAL, grpc.aio.Metadata(), broken)

    assert is_transient(raised)
    assert retry_delay(raised) == 0.0


def test_a_result_is_also_sent_again_after_the_servers_own_internal_error() -> None:
    assert is_transient_for_results(error(CODES.INTERNAL, OURS))
    assert is_transient_for_results(error(CODES.UNAVAILABLE))
    assert not is_transient_for_results(error(CODES.FAILED_PRECONDITION, OURS))


async def test_a_call_gives_up_in_time_whatever_delay_the_server_asks_for() -> None:
    asked = 0

    async def refuse(*_: object, **__: object) -> NoReturn:
        nonlocal asked
        asked += 1
        raise error(CODES.RESOURCE_EXHAUSTED, OURS, retry(60))

    connection = Connection("127.0.0.1:1", None, None, ())
    try:
        async with asyncio.timeout(30):
            with pytest.raises(grpc.aio.AioRpcError):
                await connection.call(
                    lambda _: cast("Any", refuse),
                    RenewRequest(),
                    within=timedelta(milliseconds=500),
                    attempt=10,
                )
    finally:
        await connection.close()
    # The last time before the time was up.
    assert asked == 2
