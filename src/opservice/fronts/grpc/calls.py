"""Around every call: who makes it, its request id, its errors, and its line in the log.

Handlers raise. What they raise becomes a status here, by the table of status.py, and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from logging import DEBUG, INFO, getLogger
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code

from opservice.auth.authenticator import Caller
from opservice.common.loggers import AUDIT_LOGGER
from opservice.domain.errors import (
    IamNotServed,
    MalformedRequest,
    OpserviceError,
    RequestTooLarge,
    ServerBusy,
    StoreError,
    TooManyHeaders,
)
from opservice.fronts.grpc.unsent import Unsent
from opservice.methods import pages
from opservice.methods.admission import Admission, Context, Door, Metadata, Waiting, address_of
from opservice.methods.audit import (
    REFLECTION_LINES_A_SECOND,
    Sums,
    described,
    done_by,
    is_refusal,
)
from opservice.methods.lasting import Lasting, LastingCalls, until_ended
from opservice.methods.policies import MAX_FIELDS, METHODS, Method, Who
from opservice.methods.status import error_to_pb, meaning_of
from opservice.methods.validation import MAX_ID, MAX_NAME
from opservice.methods.wire import has_more_fields

REQUEST_ID = "x-request-id"
_STATUS_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Encode: TypeAlias = "Callable[[Any], bytes]"
_Answer: TypeAlias = tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]
MAX_HEADERS = 128
"""Of a call. gRPC limits their bytes, but only for peers that say that they know of the limit."""

_LOGGED = {"operation_id": MAX_ID, "name": MAX_NAME + MAX_ID}
"""Fields of requests that say which operation is meant, and how much of them is logged."""

_IAM = "/yandex.cloud.iam.v1."
"""What Yandex SDKs call when they are given an OAuth token or a key; see OWN_ENDPOINTS."""

_LOGGER = "opservice.call"
_gate = getLogger(_LOGGER)
log = structlog.stdlib.get_logger(_LOGGER)
audit = structlog.stdlib.get_logger(AUDIT_LOGGER)


class Methods(grpc.GenericRpcHandler):
    """The methods of the server, each with what goes around every call.

    Generated code adds services to this as to a grpc.aio.Server, to which this is then added. An interceptor
    would do the same for a fifth more CPU time a call.

    With `max_calls` in progress further ones are refused, before their requests are read. Neither counted
    nor refused are those that only wait, a Wait or any stream, and health checks: a busy server is not ill.
    A method that METHODS does not have is a KeyError: who may call it must be said.
    """

    def __init__(self, max_calls: int, max_unsent_bytes: int, admission: Admission) -> None:
        self._max_calls = max_calls
        self._unsent = Unsent(max_unsent_bytes)
        self._admission = admission
        self._in_progress = _InProgress()
        self._sums = Sums(_sum_up)
        self._sums_of_reflection = Sums(_sum_up, REFLECTION_LINES_A_SECOND)
        self._served: dict[str, _Served] = {}
        self._busy = self._refusing(ServerBusy())
        self._iam = self._refusing(IamNotServed()).calls_of(f"{_IAM}*", self._sums)
        self._too_many_headers = self._refusing(
            TooManyHeaders(f"A call may have {MAX_HEADERS} headers at most")
        )

    def _refusing(self, error: OpserviceError) -> _Refusing:
        return _Refusing(error, self._in_progress)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            method = METHODS[path]
            exempt = method.waits or method.probe
            reflection = method.takes is Who.AUTHENTICATED
            sums = self._sums_of_reflection if reflection else self._sums
            around = _Around(
                path,
                method,
                self._admission.door(method),
                self._admission.waiting(method),
                self._admission.lasting(method),
                _InProgress() if exempt else self._in_progress,
                self._unsent,
                sums,
            )
            self._served[path] = _Served(
                _wrap(handler, around),
                None if exempt else self._busy.calls_of(path, sums),
                self._too_many_headers.calls_of(path, sums),
            )

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The same handlers: generated code adds them both ways."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        served = self._served.get(handler_call_details.method)
        if served is None:
            return self._iam if handler_call_details.method.startswith(_IAM) else None
        if len(handler_call_details.invocation_metadata) > MAX_HEADERS:
            return served.too_many_headers
        if served.busy is not None and self._in_progress.calls >= self._max_calls:
            return served.busy
        return served.handler


@dataclass(frozen=True, slots=True)
class _Served:
    """A method, and what refuses its calls; `busy` is None when they are taken on however many there are."""

    handler: Handler
    busy: Handler | None
    too_many_headers: Handler


class _Refusing:
    """Refuses calls. It must cost little: it does not read their requests, raise, or ask who makes them.

    So such calls have no request id. Most of what they cost beyond gRPC is their line in the audit log.
    """

    def __init__(self, error: OpserviceError, in_progress: _InProgress) -> None:
        self._error = error
        self._in_progress = in_progress
        self._code, self._message, (self._details, _) = _answer(error, "")
        self._refused, self._told_at = 0, 0.0

    def calls_of(self, path: str, sums: Sums) -> Handler:
        told = {"method": path, "code": self._code.name, **described(self._error)}

        async def refuse(_requests: object, context: Context) -> None:
            peer = context.peer()
            if sums.tells(address_of(peer), self._error):
                audit.info("call", **told, peer=peer)
            self._refused += 1
            self._warn()
            context.set_code(self._code)
            context.set_details(self._message)
            context.set_trailing_metadata((self._details,))

        # Of a method that answers once gRPC would send an empty answer, even to the client of a stream.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _warn(self) -> None:
        """Once a second, whatever the number of calls."""
        now = time.monotonic()
        if now > self._told_at + 1:
            line = {"reason": self._message, "in_progress": self._in_progress.calls}
            log.warning("refusing calls", **line, refused=self._refused)
            self._refused, self._told_at = 0, now


class _InProgress:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


@dataclass(frozen=True, slots=True)
class _Around:
    """What goes around the calls of a method."""

    path: str
    method: Method
    door: Door | None
    waiting: Waiting | None
    lasting: LastingCalls | None
    in_progress: _InProgress
    unsent: Unsent
    sums: Sums

    @property
    def level(self) -> int:
        """At which a call is logged that succeeds."""
        return INFO if self.method.writes else DEBUG

    @property
    def may_wait(self) -> bool:
        """Whether no harm is done when a call begins later, as to a lease, or to a server that is probed."""
        return self.method.takes is not Who.ANYBODY and not self.method.writes


class _Call:
    """One call, from its start to its line in the log."""

    __slots__ = (
        "_around",
        "_context",
        "_metadata",
        "_peer",
        "_request_id",
        "_started",
        "caller",
        "request",
    )

    def __init__(self, around: _Around, context: Context) -> None:
        self._started = time.perf_counter()
        self._around = around
        self.request: Any = None
        self.caller: Caller | None = None
        self._context = context
        # A stream that its client left may be ended after grpc freed the call: asked then, it crashes.
        self._peer = context.peer()
        self._metadata = cast("Metadata", context.invocation_metadata() or ())
        self._request_id = _given_request_id(self._metadata)

    @property
    def request_id(self) -> str:
        """The caller's, when it is one that can be logged and sent back; else a new one."""
        if self._request_id is None:
            self._request_id = str(uuid.uuid4())
        return self._request_id

    async def enter(self) -> None:
        """Finds out who calls. Raises what refuses them, whatever they ask for."""
        if self._around.door is not None:
            self.caller = await self._around.door(self._context, self._metadata)
            self.caller.admit_call()

    def waiting(self) -> AbstractContextManager[None]:
        """While the call may wait. Raises TooManyWaits."""
        if self._around.waiting is None:
            return nullcontext()
        return self._around.waiting(self.caller, self._context)

    def lasting(self) -> AbstractContextManager[Lasting | None]:
        """While the call lasts, if there is something that ends it."""
        if self._around.lasting is None:
            return nullcontext()
        return self._around.lasting.of(self.caller)

    async def each(
        self, requests: AsyncIterator[Any], lasting: Lasting | None
    ) -> AsyncIterator[Any]:
        """The requests of a stream, each of which passes the door; for the first the call has done so.

        So each counts towards the rate, and none is answered when the credentials are not good any more.
        """
        first = True
        async for request in requests if lasting is None else until_ended(requests, lasting):
            if not first:
                await self.enter()
            first = False
            yield request

    def succeed(self) -> None:
        # A read of which nothing is logged gets no id either: trailers are a sixth of a Get's cost.
        if self._request_id is not None or self._is_logged():
            self._context.set_trailing_metadata(((REQUEST_ID, self.request_id),))
            self._log(Code.OK)

    def cancelled(self) -> None:
        self._log(Code.CANCELLED)

    def refused(self, error: Exception) -> _Answer:
        """Logs it, and keeps nothing of what was asked and found. Returns what the caller is told."""
        code = meaning_of(error).code
        told = self._around.sums.tells(address_of(self._peer), error)
        line = self._line(code) if told else {}
        if code == Code.INTERNAL:
            log.error("call", **line, exc_info=error)
        elif isinstance(error, StoreError):
            log.warning("call", **line, cause=str(error.__cause__ or error))
        if not told:
            pass
        elif self._around.method.audited or is_refusal(error, self.caller):
            audit.info("call", **line, **described(error))
        elif code != Code.INTERNAL and not isinstance(error, StoreError):
            log.info("call", **line, **described(error))
        self.request = None
        if self.caller is not None:
            self.caller.command = self.caller.outcome = None
        return _answer(error, self.request_id)

    def _is_logged(self) -> bool:
        return self._around.method.audited or _gate.isEnabledFor(self._around.level)

    def _log(self, code: int) -> None:
        if self._around.method.audited:
            audit.info("call", **self._line(code))
        elif _gate.isEnabledFor(
            self._around.level
        ):  # a read's line costs nothing unless it is wanted
            log.log(self._around.level, "call", **self._line(code))

    def _line(self, code: int) -> dict[str, object]:
        line: dict[str, object] = {
            "method": self._around.path,
            "code": _STATUS_CODES[code].name,
            "duration_ms": round((time.perf_counter() - self._started) * 1000, 1),
            "request_id": self.request_id,
            "peer": self._peer,
        }
        for field, limit in _LOGGED.items():
            value = getattr(self.request, field, None)
            if value:
                line[field] = value[:limit]
        return line if self.caller is None else line | done_by(self.caller)


def _sum_up(address: str, error: str, count: int) -> None:
    line = {"error": error, "peer": address.removeprefix("peer:"), "calls": count}
    audit.info("more calls were refused in the last second", **line)


def _given_request_id(metadata: Metadata) -> str | None:
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return None


def _bounded(decode: Callable[[bytes], Any], method: Method) -> Callable[[bytes], Any]:
    """Decodes requests that are not too large. Raises RequestTooLarge, or MalformedRequest."""
    kind, most = cast("Any", decode).__self__.DESCRIPTOR, method.max_bytes

    def decoded(request: bytes) -> Any:
        if most is None:
            if has_more_fields(request, kind, MAX_FIELDS):
                raise RequestTooLarge(
                    f"The request has more than {MAX_FIELDS} fields, those of the messages in it"
                    " counted too"
                )
        elif len(request) > most:
            raise RequestTooLarge(
                f"The request has {len(request)} bytes, at most {most} are allowed"
            )
        try:
            return decode(request)
        except DecodeError as error:
            raise MalformedRequest from error

    return decoded


def _answer(error: Exception, request_id: str) -> _Answer:
    """The code, message and trailers for an error."""
    status = error_to_pb(error, request_id)
    trailers = ((_STATUS_DETAILS, status.SerializeToString()), (REQUEST_ID, request_id))
    return _STATUS_CODES[status.code], status.message, trailers


def _wrap(handler: Handler, around: _Around) -> Handler:
    """Answers are serialized before grpc does it, so that their size is known."""
    assert handler.request_deserializer is not None, around.path
    decode, encode = (
        _bounded(handler.request_deserializer, around.method),
        handler.response_serializer,
    )
    assert encode is not None, around.path
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(
            _wrap_unary(around, handler.unary_unary, decode, encode)
        )
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(
            _wrap_stream(around, handler.unary_stream, decode, encode)
        )
    assert handler.stream_stream is not None, around.path
    return grpc.stream_stream_rpc_method_handler(
        _wrap_stream(around, handler.stream_stream, None, encode), decode
    )


def _wrap_unary(
    around: _Around, behavior: Callable[..., Any], decode: Callable[[bytes], Any], encode: _Encode
) -> Callable[..., Any]:
    in_progress, unsent = around.in_progress, around.unsent
    waits, has_pages = around.waiting is not None, around.method.pages
    may_wait = around.may_wait

    async def call(request: Any, context: Context) -> Any:
        this = _Call(around, context)
        entered = False
        refusal = None
        try:
            if may_wait:
                await unsent.turn(context)
            await this.enter()
            entered = True
            in_progress.calls += 1
            # Here: not for who is refused, and with our kind of error when it is no request.
            request = this.request = decode(request)
            if waits:
                with this.waiting():
                    answer = encode(await behavior(request, context))
            elif has_pages:
                answer = await pages.encode(await behavior(request, context))
            else:
                answer = encode(await behavior(request, context))
            unsent.until_done(answer, context)
        except asyncio.CancelledError:
            this.cancelled()
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status
            refusal = this.refused(error)
            # Who reads nothing does not read this either: no large answer may be kept until they do, so
            # neither the error, whose traceback leads to it.
            request = answer = None
        finally:
            in_progress.calls -= entered
        if refusal is not None:
            await context.abort(*refusal)
        this.succeed()
        return answer

    return call


def _wrap_stream(
    around: _Around,
    behavior: Callable[..., Any],
    decode: Callable[[bytes], Any] | None,
    encode: _Encode,
) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        this = _Call(around, context)
        refusal = None
        try:
            if around.may_wait:
                await around.unsent.turn(context)
            await this.enter()
            if decode is not None:
                request = this.request = decode(request)
            with this.waiting(), this.lasting() as lasting:
                if decode is None:
                    request = this.each(request, lasting)
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        answer = encode(response)
                        response = None  # it may be large, and its reader slow
                        with around.unsent.while_written(answer, context):
                            yield answer
        except (asyncio.CancelledError, GeneratorExit):  # before an answer, or while it is written
            this.cancelled()
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status
            refusal = this.refused(error)
            request = answer = None  # as in _wrap_unary
        if refusal is not None:
            await context.abort(*refusal)
        this.succeed()

    return call
