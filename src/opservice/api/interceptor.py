"""Around every call: its request id, its errors, and its line in the log.

Handlers raise. What they raise becomes a status here, by the table of status.py, and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from logging import DEBUG, INFO, getLogger
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.rpc.code_pb2 import Code
from grpc.aio import AbortError, ServerInterceptor, ServicerContext

from opservice.api.status import error_to_pb, meaning_of
from opservice.errors import StoreError

REQUEST_ID = "x-request-id"
_STATUS_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_READS = frozenset({"Get", "List", "Wait", "Watch", "Check", "ServerReflectionInfo"})

Context: TypeAlias = "ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_LOGGER = "opservice.call"
_gate = getLogger(_LOGGER)
log = structlog.stdlib.get_logger(_LOGGER)


class CallInterceptor(ServerInterceptor):
    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        # A method's handler never changes, so it is wrapped once. Unknown methods have none.
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            wrapped = self._wrapped[method] = _wrap(method, handler)
        return wrapped


class _Call:
    """One call, from its start to its line in the log."""

    __slots__ = ("_context", "_method", "_started", "request", "request_id")

    def __init__(self, method: str, context: Context) -> None:
        self._started = time.perf_counter()
        self._method = method
        self.request: Any = None
        self._context = context
        self.request_id = _request_id(context)

    def succeed(self) -> None:
        self._context.set_trailing_metadata(((REQUEST_ID, self.request_id),))
        self._log(Code.OK)

    def cancelled(self) -> None:
        self._log(Code.CANCELLED)

    async def fail(self, error: Exception) -> NoReturn:
        code = meaning_of(error).code
        line = self._line(code)
        if code == Code.INTERNAL:
            log.error("call", **line, exc_info=error)
        elif isinstance(error, StoreError):
            log.warning("call", **line, cause=str(error.__cause__ or error))
        else:
            log.info("call", **line, error=error.__class__.__name__)
        status = error_to_pb(error, self.request_id)
        await self._context.abort(
            _STATUS_CODES[status.code],
            status.message,
            ((_STATUS_DETAILS, status.SerializeToString()), (REQUEST_ID, self.request_id)),
        )

    def _log(self, code: int) -> None:
        level = DEBUG if self._method.rpartition("/")[2] in _READS else INFO
        if _gate.isEnabledFor(level):  # a read's line costs nothing unless it is wanted
            log.log(level, "call", **self._line(code))

    def _line(self, code: int) -> dict[str, object]:
        line: dict[str, object] = {
            "method": self._method,
            "code": _STATUS_CODES[code].name,
            "duration_ms": round((time.perf_counter() - self._started) * 1000, 1),
            "request_id": self.request_id,
            "peer": self._context.peer(),
        }
        operation_id = getattr(self.request, "operation_id", None)
        if operation_id:
            line["operation_id"] = operation_id[:128]
        return line


def _request_id(context: Context) -> str:
    """The caller's, when it is one that can be logged and sent back; else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return str(uuid.uuid4())


def _wrap(method: str, handler: Handler) -> Handler:
    unary = handler.unary_unary
    if unary is not None:
        return grpc.unary_unary_rpc_method_handler(
            _wrap_unary(method, unary, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(
            _wrap_stream(method, handler.unary_stream, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
    assert handler.stream_stream is not None, method
    return grpc.stream_stream_rpc_method_handler(
        _wrap_stream(method, handler.stream_stream, None),
        handler.request_deserializer,
        handler.response_serializer,
    )


def _wrap_unary(
    method: str, behavior: Callable[..., Any], decode: Callable[[bytes], Any] | None
) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        this = _Call(method, context)
        try:
            if decode is not None:  # here, so that a request that is none gets our kind of error
                request = this.request = decode(request)
            response = await behavior(request, context)
        except AbortError:
            raise
        except asyncio.CancelledError:
            this.cancelled()
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status
            await this.fail(error)
        this.succeed()
        return response

    return call


def _wrap_stream(
    method: str, behavior: Callable[..., Any], decode: Callable[[bytes], Any] | None
) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        this = _Call(method, context)
        try:
            if decode is not None:
                request = this.request = decode(request)
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response
        except AbortError:
            raise
        except asyncio.CancelledError:
            this.cancelled()
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status
            await this.fail(error)
        this.succeed()

    return call
