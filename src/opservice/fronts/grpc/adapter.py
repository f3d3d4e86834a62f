"""Calls by grpc.aio, for the pipeline: each gets a Call that knows its grpc context."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc.aio import ServicerContext

from opservice.common.metrics import GRPC_HANDLED, GRPC_SECONDS, CallCounts, Counter
from opservice.fronts.backpressure import UnreadResponses
from opservice.methods import pages
from opservice.methods.call import REQUEST_ID, Call, ClientGone, Headers
from opservice.methods.pipeline import IAM, EarlyRefusal, MethodPipeline, Pipeline
from opservice.methods.registry import Method
from opservice.methods.wire import decoder_of

Context: TypeAlias = "ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_STATUS_DETAILS = "grpc-status-details-bin"
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_CANCELLED = grpc.StatusCode.CANCELLED.value[0]
_GO_NAMES = {"Ok": "OK", "Cancelled": "Canceled"}
"""Dashboards know the codes by the names that they have in Go, of which two differ."""
_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


class Methods(grpc.GenericRpcHandler):
    """The methods of a server, to be added to it as one generic handler.

    An interceptor would do the same for a fifth more CPU time a call.
    """

    def __init__(self, pipeline: Pipeline, unread: UnreadResponses) -> None:
        self._pipeline = pipeline
        self._unread = unread
        self._routes: dict[str, _Route] = {}
        self._no_iam = _refusing(pipeline.no_iam, pipeline.refuse_iam)

    def add(self, methods: Iterable[Method]) -> None:
        """Raises KeyError for a method without a policy."""
        for method in methods:
            self._routes[method.path] = _Route(self._pipeline.of(method), self._unread)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """What handles a call, before its request is read; None for a method that is not served."""
        route = self._routes.get(handler_call_details.method)
        if route is None:
            return self._no_iam if handler_call_details.method.startswith(IAM) else None
        refusal = route.pipeline.early_refusal(len(handler_call_details.invocation_metadata))
        return route.handler if refusal is None else route.refusing(refusal)


class _Route:
    """A method, and the handlers that grpc is given for its calls."""

    def __init__(self, pipeline: MethodPipeline, unread: UnreadResponses) -> None:
        self.pipeline = pipeline
        self.unread = unread
        method = pipeline.method
        self.decode = decoder_of(method.request, pipeline.policy)
        self.has_pages = pipeline.policy.pages
        self.streams = method.streams_responses
        self._counts = _counts_of(method)
        self._refusing: dict[EarlyRefusal, Handler] = {}
        self.handler: Handler
        answer = cast("Any", self._answer)
        if method.streams_requests:
            assert self.streams, f"{method.path}: a stream of requests has a stream of responses"
            self.handler = grpc.stream_stream_rpc_method_handler(answer, self.decode)
        elif self.streams:
            self.handler = grpc.unary_stream_rpc_method_handler(answer)
        else:
            self.handler = grpc.unary_unary_rpc_method_handler(answer)

    async def _answer(self, request: Any, context: Context) -> bytes | None:
        call = GrpcCall(self, request, context)
        del request
        code = _CANCELLED
        try:
            status = await self.pipeline.run(call)
            code = 0 if status is None else status.code
        except ClientGone as gone:
            # It was raised from an error of grpc's own, which knows what to do with it.
            raise (gone.__cause__ or gone) from None
        finally:
            self._counts.ended(code, time.perf_counter() - call.started)
        if status is not None:
            await context.abort(
                _STATUS_CODES[status.code],
                status.message,
                (_details(status), (REQUEST_ID, call.request_id)),
            )
        return call.answer

    def refusing(self, refusal: EarlyRefusal) -> Handler:
        """A handler that refuses calls, so early that it does not read their requests."""
        handler = self._refusing.get(refusal)
        if handler is None:

            def log(peer: str) -> None:
                self.pipeline.refuse(refusal, peer)
                self._counts.refused(refusal.status.code)

            handler = _refusing(refusal, log)
            self._refusing[refusal] = handler
        return handler


def _counts_of(method: Method) -> CallCounts:
    """The metrics of a method's calls, under the names that go-grpc-prometheus has given them."""
    kind = _KINDS[method.streams_requests, method.streams_responses]
    labels = kind, method.service, method.name

    def counter_of(code: int) -> Counter:
        name = "".join(word.capitalize() for word in _STATUS_CODES[code].name.split("_"))
        return GRPC_HANDLED.labels(*labels, _GO_NAMES.get(name, name))

    return CallCounts(GRPC_SECONDS.labels(*labels), counter_of)


class GrpcCall(Call):
    """A call that grpc.aio has accepted.

    Responses are encoded here and not by grpc, so that their size is known. The response of a method that
    does not stream is kept in `answer`, for grpc to send with the status.
    """

    front = "grpc"

    __slots__ = ("_context", "_received", "_route", "answer")

    def __init__(self, route: _Route, received: Any, context: Context) -> None:
        # The peer is asked for at once: when grpc has freed the call, asking crashes the process.
        headers: Any = context.invocation_metadata() or ()
        super().__init__(context.peer(), headers)
        self._route = route
        self._received = received
        self._context = context
        self.answer: bytes | None = None

    def forget_payloads(self) -> None:
        super().forget_payloads()
        self._received = None

    def certificate(self) -> bytes | None:
        return next(iter(self._context.auth_context().get("x509_pem_cert", ())), None)

    def seconds_left(self) -> float | None:
        return self._context.time_remaining()

    def wait_for_turn(self) -> Awaitable[None]:
        return self._route.unread.wait_for_turn(self.peer)

    async def receive(self) -> Message:
        received, self._received = self._received, None
        return self._route.decode(received)

    def requests(self) -> AsyncIterator[Message]:
        return cast("AsyncIterator[Message]", self._received)

    async def send(self, response: Message) -> None:
        route = self._route
        if route.has_pages:
            answer = await pages.encode(response)
        else:
            answer = response.SerializeToString()
        del response  # it may be large, and its reader slow
        if route.streams:
            with route.unread.written(self.peer, len(answer)):
                await self._write(answer)
            return
        read = route.unread.add(self.peer, len(answer))
        if read is not None:
            self._context.add_done_callback(lambda _: read())  # type: ignore[arg-type] # wrong in its stubs
        self.answer = answer

    async def _write(self, answer: bytes) -> None:
        try:
            await self._context.write(answer)
        except grpc.aio.BaseError as error:
            raise ClientGone from error

    async def send_headers(self, headers: Headers) -> None:
        try:
            await self._context.send_initial_metadata(tuple(headers))
        except grpc.aio.BaseError as error:
            raise ClientGone from error

    def set_trailers(self, trailers: Headers) -> None:
        self._context.set_trailing_metadata(tuple(trailers))


def _details(status: Status) -> tuple[str, bytes]:
    return _STATUS_DETAILS, status.SerializeToString()


def _refusing(refusal: EarlyRefusal, log: Callable[[str], None]) -> Handler:
    code, details = _STATUS_CODES[refusal.status.code], _details(refusal.status)

    async def refuse(_requests: object, context: Context) -> None:
        log(context.peer())
        context.set_code(code)
        context.set_details(refusal.status.message)
        context.set_trailing_metadata((details,))

    # Of a method that answers once gRPC would send an empty answer, even to the client of a stream.
    return grpc.stream_stream_rpc_method_handler(cast("Any", refuse))
