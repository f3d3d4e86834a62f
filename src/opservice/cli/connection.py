"""Calls to the server, and what its refusals say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

import click
import grpc
from google.protobuf.any_pb2 import Any as AnyPayload
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RequestInfo
from grpc_status import rpc_status

from opservice._proto.opservice.v1.operation_record_service_pb2_grpc import (
    OperationRecordServiceStub,
)
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from opservice.cli.exits import CommandFailed, Exit, worst
from opservice_client import Producer

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_EXITS = {
    grpc.StatusCode.NOT_FOUND: Exit.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE: Exit.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNREACHABLE,
    grpc.StatusCode.PERMISSION_DENIED: Exit.REFUSED,
    grpc.StatusCode.UNAUTHENTICATED: Exit.REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: Exit.REFUSED,
    grpc.StatusCode.INVALID_ARGUMENT: Exit.REFUSED,
}


def exit_code_of(code: grpc.StatusCode) -> Exit:
    """The exit code of a command whose call was answered with this code."""
    return _EXITS.get(code, Exit.ERROR)


class Connection:
    """A channel to the server, the stubs on it, and the metadata that goes with each call."""

    def __init__(
        self,
        address: str,
        channel: grpc.Channel,
        token: str | None,
        call_seconds: float,
        new_producer: Callable[[], Producer],
    ) -> None:
        self.address = address
        self.new_producer = new_producer
        """Makes a producer that talks to this server, as this caller."""
        self.channel = channel
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._call_seconds = call_seconds
        self.records = OperationRecordServiceStub(channel)
        self.operations = OperationServiceStub(channel)
        self.producer = ProducerServiceStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.channel.close()

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request
    ) -> Response:
        """Raises RpcError."""
        return method(request, timeout=self._call_seconds, metadata=self.metadata)

    def failed(self, error: grpc.RpcError) -> CommandFailed:
        return CommandFailed(describe(self.address, error), exit_code_of(error.code()))

    def not_found(self, operation_id: str) -> CommandFailed:
        """What is said of an operation that an answer about several has named as missing."""
        said = f"{self.address}: NOT_FOUND: Operation {operation_id} not found"
        return CommandFailed(said, Exit.NOT_FOUND)


class Calls:
    """Calls one after the other; says which were refused, and knows the worst exit code.

    After one that did not reach the server no more are tried.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._exits = [Exit.DONE]

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        raising: grpc.StatusCode | None = None,
    ) -> Response | None:
        """None when it was refused or not tried. Raises RpcError when the code is `raising`."""
        if self._exits[-1] is Exit.UNREACHABLE:
            return None
        try:
            return self._connection.call(method, request)
        except grpc.RpcError as error:
            if error.code() is raising:
                raise
            self.say(self._connection.failed(error))
            return None

    def say(self, failed: CommandFailed) -> None:
        """Of what else was refused."""
        failed.show()
        self._exits.append(Exit(failed.exit_code))

    def exit(self) -> None:
        click.get_current_context().exit(worst(self._exits))


def describe(address: str, error: grpc.RpcError) -> str:
    """What the server said, its field violations and its request id, in one line.

    Further lines are the server's own: a filter that does not parse is shown, and where.
    """
    details = error.details() or "no more is known"
    first, *further = details.split("\n")
    said = f"{address}: {error.code().name}: {first}"
    for detail in _details(error):
        bad_request, request = BadRequest(), RequestInfo()
        if detail.Unpack(bad_request):
            for violation in bad_request.field_violations:
                if violation.description not in details:
                    said += f"; {violation.field}: {violation.description}"
        elif detail.Unpack(request):
            said += f" (request id {request.request_id})"
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        said += "; the server is older than this program, or it is no opservice"
    return "\n  ".join([said, *further])


def _details(error: grpc.RpcError) -> list[AnyPayload]:
    assert isinstance(error, grpc.Call)
    with suppress(ValueError):  # when they contradict the status, which then is what counts
        status = rpc_status.from_call(error)
        return [] if status is None else list(status.details)
    return []
