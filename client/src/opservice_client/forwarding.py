"""OperationService on a service's own server, answered by opservice.

Yandex Go clients poll an operation at the address of the service that started it. The calls are passed
on as they are: the same bytes, the caller's own metadata (so its own credentials) and deadline; and the
answer likewise, its metadata and error details included.

    forward_operations(server, grpc.insecure_channel("opservice:50051"))          # grpc.server
    forward_operations_aio(server, grpc.aio.insecure_channel("opservice:50051"))  # grpc.aio.server
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc

_SERVICE = "yandex.cloud.operation.OperationService"
_METHODS = ("Get", "Cancel")
_STATUS_DETAILS = "grpc-status-details-bin"
_LONGEST_SECONDS = 30.0

# What belongs to one connection, or is set anew by the library.
_NOT_FORWARDED = frozenset({"user-agent", "content-type", "te", "host", "connection"})


def forward_operations(server: grpc.Server, channel: grpc.Channel) -> None:
    """Adds OperationService to a server with threads."""

    def forward(method: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        call = channel.unary_unary(f"/{_SERVICE}/{method}")

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            answer = call.future(
                request,
                timeout=_timeout(context.time_remaining()),
                metadata=_forwarded(context.invocation_metadata()),
            )
            if not context.add_callback(lambda: _ignore(answer.cancel())):
                answer.cancel()  # the caller has gone already
            try:
                response: bytes = answer.result()
            except grpc.FutureCancelledError:
                context.abort(grpc.StatusCode.CANCELLED, "The caller has gone")
            except grpc.RpcError as error:
                context.set_trailing_metadata(_returned(error.trailing_metadata()))
                context.abort(error.code(), _message(error))
            context.send_initial_metadata(_returned(answer.initial_metadata()))
            context.set_trailing_metadata(_returned(answer.trailing_metadata()))
            return response

        return handle

    server.add_generic_rpc_handlers((_handlers(forward),))


def forward_operations_aio(server: grpc.aio.Server, channel: grpc.aio.Channel) -> None:
    """Adds OperationService to an asyncio server."""

    def forward(method: str) -> Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Any]:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = channel.unary_unary(f"/{_SERVICE}/{method}")

        async def handle(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            answer = call(
                request,
                timeout=_timeout(context.time_remaining()),
                metadata=_forwarded(context.invocation_metadata()),
            )
            try:
                response: bytes = await answer
            except grpc.aio.AioRpcError as error:
                returned = _returned(error.trailing_metadata())
                await context.abort(error.code(), _message(error), returned)
            await context.send_initial_metadata(_returned(await answer.initial_metadata()))
            context.set_trailing_metadata(_returned(await answer.trailing_metadata()))
            return response

        return handle

    server.add_generic_rpc_handlers((_handlers(forward),))


def _timeout(remaining: float | None) -> float:
    """Without a deadline a caller has all the time, or what grpc.server takes for it."""
    return _LONGEST_SECONDS if remaining is None else min(remaining, _LONGEST_SECONDS)


def _message(error: grpc.RpcError) -> str:
    """opservice's own, which has details; a channel's tells addresses that are none of the caller's."""
    is_ours = _STATUS_DETAILS in dict(_returned(error.trailing_metadata()))
    if error.code() is grpc.StatusCode.UNAVAILABLE and not is_ours:
        return "The operations server is not available"
    return error.details() or ""


def _ignore(_: object) -> None:
    """Makes a callback of something that returns a value."""


def _handlers(forward: Callable[[str], Callable[..., Any]]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        _SERVICE,
        {method: grpc.unary_unary_rpc_method_handler(forward(method)) for method in _METHODS},
    )


def _forwarded(metadata: Iterable[Any] | None) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if key not in _NOT_FORWARDED and not key.startswith(("grpc-", ":"))
    )


def _returned(metadata: Iterable[Any] | None) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if key == _STATUS_DETAILS or not key.startswith(("grpc-", ":", "content-"))
    )
