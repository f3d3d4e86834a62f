"""What may be tried again: one rule for this library and the command line.

The server says so itself: each of its refusals has an ErrorInfo of its domain, and a RetryInfo when the
same call may be answered otherwise later. An error without that ErrorInfo comes from what lies between,
such as a connection that was reset, a proxy, or our own deadline: there its code decides.
"""

from __future__ import annotations

from contextlib import suppress
from random import SystemRandom

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

ERROR_DOMAIN = "opservice"

jitter: SystemRandom = SystemRandom()
"""For pauses. Not of the module `random`, whose numbers are the service's: it may have seeded them. And not
with a state, which processes that were forked from one would share, and so pause in step.
"""

_STATUS_DETAILS = "grpc-status-details-bin"
_LONGEST_DELAY_SECONDS = 60.0

# How gRPC says that a request is too large for itself, and for a proxy (HTTP's 413).
_TOO_LARGE = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "message larger than max",
    grpc.StatusCode.UNKNOWN: "with status: 413",
}

# CANCELLED is what a server that stops may answer, and INTERNAL what gRPC makes of a stream that a proxy
# reset. Our own cancelling is not seen here: then nobody waits for the answer any more.
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


def is_transient(error: grpc.RpcError) -> bool:
    """Whether the same call may be answered otherwise later."""
    info, retry = ErrorInfo(), RetryInfo()
    details = _details(error)
    if _read(details, info) and info.domain == ERROR_DOMAIN:
        return _read(details, retry)
    return error.code() in _TRANSIENT and not is_malformed(error)


def is_transient_for_work(error: grpc.RpcError) -> bool:
    """The same for the calls of work that runs: also UNAUTHENTICATED.

    The credentials were good when the work started. They may be between two tokens, or the server between
    two sets of keys; giving up at once would lose hours of work.
    """
    return is_transient(error) or error.code() == grpc.StatusCode.UNAUTHENTICATED


def is_transient_for_results(error: grpc.RpcError) -> bool:
    """The same for Complete and Fail, whose result would be lost: also after the server's own INTERNAL."""
    return is_transient_for_work(error) or error.code() == grpc.StatusCode.INTERNAL


def retry_delay(error: grpc.RpcError) -> float:
    """The seconds that the server asks to wait before the next try, 0 to 60; 0 when it asks for none."""
    retry = RetryInfo()
    if not _read(_details(error), retry):
        return 0.0
    return min(max(retry.retry_delay.ToMilliseconds() / 1000, 0.0), _LONGEST_DELAY_SECONDS)


def is_malformed(error: grpc.RpcError) -> bool:
    """Whether it is the request's own fault: a bad field, or a size that gRPC itself or a proxy refuses."""
    if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
        return True
    too_large = _TOO_LARGE.get(error.code())
    return too_large is not None and too_large in (error.details() or "")


def _details(error: grpc.RpcError) -> Status:
    """Empty when there are none, or none that can be read."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_DETAILS and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _read(status: Status, detail: Message) -> bool:
    """Fills in the first detail of this type, if there is one."""
    with suppress(DecodeError):
        return any(each.Unpack(detail) for each in status.details)
    return False
