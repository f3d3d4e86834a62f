"""Around every call: its request id, its errors, and its line in the log.

Handlers raise. What they raise becomes a status here, by the table of status.py, and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from logging import DEBUG, INFO, getLogger
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code
from grpc.aio import AbortError, ServicerContext

from opservice.api.status import error_to_pb, meaning_of
from opservice.api.validation import MAX_ID, MAX_NAME
from opservice.errors import MalformedRequest, ServerBusy, StoreError

HEALTH_SERVICE = "grpc.health.v1.Health"
REQUEST_ID = "x-request-id"
_STATUS_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_READS = ("Get", "List", "Wait", "Watch", "Check", "ServerReflectionInfo")
"""How the names of methods begin that change nothing."""

Context: TypeAlias = "ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_LOGGED = {"operation_id": MAX_ID, "name": MAX_NAME + MAX_ID}
"""Fields of requests that say which operation is meant, and how much of them is logged."""

_LOGGER = "opservice.call"
_gate = getLogger(_LOGGER)
log = structlog.stdlib.get_logger(_LOGGER)


class Methods(grpc.GenericRpcHandler):
    """The methods of the server, each with what goes around every call.

    Generated code adds services to this as to a grpc.aio.Server, to which this is then added. An interceptor
    would do the same for a fifth more CPU time a call.

    With `max_calls` in progress further ones are refused, before their requests are read. Neither counted
    nor refused are those that only wait, a Wait or any stream, and health checks: a busy server is not ill.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._in_progress = _InProgress()
        self._handlers: dict[str, Handler] = {}
        self._exempt: set[str] = set()
        self._refusal: Handler = grpc.stream_unary_rpc_method_handler(self._refuse)
        self._refused = 0
        self._told_at = 0.0

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            waits = handler.unary_unary is None or name.startswith("Wait")
            exempt = waits or service == HEALTH_SERVICE
            self._handlers[method] = _wrap(method, handler, None if exempt else self._in_progress)
            if exempt:
                self._exempt.add(method)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The same handlers: generated code adds them both ways."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        method = handler_call_details.method
        if self._in_progress.calls >= self._max_calls and method not in self._exempt:
            return self._refusal
        return self._handlers.get(method)

    async def _refuse(self, requests: object, context: Context) -> None:
        self._refused += 1
        now = time.monotonic()
        if now > self._told_at + 1:
            log.warning(
                "refusing calls", in_progress=self._in_progress.calls, refused=self._refused
            )
            self._told_at, self._refused = now, 0
        # Without an exception: a refusal must cost less than what it saves.
        code, message, trailers = _BUSY
        context.set_code(code)
        context.set_details(message)
        context.set_trailing_metadata(trailers)


class _InProgress:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class _Call:
    """One call, from its start to its line in the log."""

    __slots__ = ("_context", "_level", "_method", "_request_id", "_started", "request")

    def __init__(self, method: str, level: int, context: Context) -> None:
        self._started = time.perf_counter()
        self._method = method
        self._level = level
        self.request: Any = None
        self._context = context
        self._request_id = _given_request_id(context)

    @property
    def request_id(self) -> str:
        """The caller's, when it is one that can be logged and sent back; else a new one."""
        if self._request_id is None:
            self._request_id = str(uuid.uuid4())
        return self._request_id

    def succeed(self) -> None:
        # A read of which nothing is logged gets no id either: trailers are a sixth of a Get's cost.
        if self._request_id is not None or _gate.isEnabledFor(self._level):
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
        await self._context.abort(*_answer(error, self.request_id))

    def _log(self, code: int) -> None:
        if _gate.isEnabledFor(self._level):  # a read's line costs nothing unless it is wanted
            log.log(self._level, "call", **self._line(code))

    def _line(self, code: int) -> dict[str, object]:
        line: dict[str, object] = {
            "method": self._method,
            "code": _STATUS_CODES[code].name,
            "duration_ms": round((time.perf_counter() - self._started) * 1000, 1),
            "request_id": self.request_id,
            "peer": self._context.peer(),
        }
        for field, limit in _LOGGED.items():
            value = getattr(self.request, field, None)
            if value:
                line[field] = value[:limit]
        return line


def _given_request_id(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return None


def _decoded(decode: Callable[[bytes], Any], request: bytes) -> Any:
    try:
        return decode(request)
    except DecodeError as error:
        raise MalformedRequest from error


def _answer(
    error: Exception, request_id: str
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """The code, message and trailers for an error."""
    status = error_to_pb(error, request_id)
    trailers = ((_STATUS_DETAILS, status.SerializeToString()), (REQUEST_ID, request_id))
    return _STATUS_CODES[status.code], status.message, trailers


_BUSY = _answer(ServerBusy(), "")


def _level(method: str) -> int:
    """At which a call is logged that succeeds."""
    return DEBUG if method.rpartition("/")[2].startswith(_READS) else INFO


def _wrap(method: str, handler: Handler, in_progress: _InProgress | None) -> Handler:
    unary = handler.unary_unary
    if unary is not None:
        return grpc.unary_unary_rpc_method_handler(
            _wrap_unary(method, unary, handler.request_deserializer, in_progress or _InProgress()),
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
    method: str,
    behavior: Callable[..., Any],
    decode: Callable[[bytes], Any] | None,
    in_progress: _InProgress,
) -> Callable[..., Any]:
    level = _level(method)

    async def call(request: Any, context: Context) -> Any:
        this = _Call(method, level, context)
        in_progress.calls += 1
        try:
            if decode is not None:  # here, so that a request that is none gets our kind of error
                request = this.request = _decoded(decode, request)
            response = await behavior(request, context)
        except AbortError:
            raise
        except asyncio.CancelledError:
            this.cancelled()
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status
            await this.fail(error)
        finally:
            in_progress.calls -= 1
        this.succeed()
        return response

    return call


def _wrap_stream(
    method: str, behavior: Callable[..., Any], decode: Callable[[bytes], Any] | None
) -> Callable[..., Any]:
    level = _level(method)

    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        this = _Call(method, level, context)
        try:
            if decode is not None:
                request = this.request = _decoded(decode, request)
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
