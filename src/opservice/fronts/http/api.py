"""The API by REST: finds the method of a request, runs it through the pipeline, and answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from opservice.domain.errors import PermissionDenied
from opservice.fronts.backpressure import UnreadResponses
from opservice.fronts.http.call import Codec, HttpCall, wait_of
from opservice.fronts.http.conditions import server_timeout
from opservice.fronts.http.conversions import Conversions
from opservice.fronts.http.counting import RequestCounts
from opservice.fronts.http.exchange import Exchange, HttpHeaders, Receive, Scope, Send
from opservice.fronts.http.faults import (
    BAD_PATH,
    OTHER_VERSION,
    Fault,
    allow,
    fault_of,
    unknown_path,
    wrong_http_method,
)
from opservice.fronts.http.origins import Origins
from opservice.fronts.http.routes import Route, Routes, routes_of
from opservice.fronts.http.statuses import HTTP_CODES, error_headers, error_to_json
from opservice.methods.call import REQUEST_ID, ClientGone
from opservice.methods.pipeline import EarlyRefusal, MethodPipeline, Pipeline
from opservice.methods.protojson import ProtoJson
from opservice.methods.registry import Method

_GONE = Status(code=Code.DEADLINE_EXCEEDED, message="The time of X-Server-Timeout is over")


@dataclass(frozen=True, slots=True)
class _Served:
    """A method, as it is called by HTTP."""

    pipeline: MethodPipeline
    waiting: MethodPipeline
    """For callers who prefer to wait."""
    codec: Codec

    @property
    def is_safe(self) -> bool:
        """Whether HEAD may do what GET does, because that changes nothing, and ends."""
        return not (self.pipeline.policy.writes or self.pipeline.method.streams_responses)


class Api:
    """An ASGI application, of all methods that have routes."""

    def __init__(
        self,
        pipeline: Pipeline,
        methods: Iterable[Method],
        json: ProtoJson,
        unread: UnreadResponses,
        origins: Origins,
        max_message_bytes: int,
        max_wait_seconds: int,
    ) -> None:
        """`max_wait_seconds` is the most that a read waits. Raises KeyError for a method without a policy."""
        self._max_wait_seconds = max_wait_seconds
        self._unread = unread
        self._origins = origins
        self._methods: dict[str, _Served] = {}
        routes: list[Route] = []
        conversions = Conversions(json)
        for method in methods:
            own = routes_of(method.descriptor, method.path)
            if own and not method.streams_requests:
                through = pipeline.of(method)
                self._methods[method.path] = _Served(
                    through,
                    pipeline.of(method, waits=True),
                    Codec(method, through.policy, conversions, max_message_bytes),
                )
                routes += own
        self.routes = Routes(routes)
        self._counts = RequestCounts()
        self._of_page = EarlyRefusal(
            PermissionDenied(
                "The request comes from a page of another site: --cors-origin allows sites"
            ),
            pipeline,
        )
        self._of_host = EarlyRefusal(
            PermissionDenied(
                "Without authentication this server is called by an address or localhost, not by a"
                " name that others may have made up: --cors-origin allows names"
            ),
            pipeline,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Never raises, but when the task is cancelled."""
        exchange = Exchange(scope, receive, send)
        began = time.perf_counter()
        try:
            await self._answer(exchange)
        except ClientGone:
            return
        finally:
            seconds = time.perf_counter() - began
            self._counts.ended(exchange.handler, exchange.method, exchange.status, seconds)

    async def _answer(self, exchange: Exchange) -> None:
        wanted = "GET" if exchange.method == "HEAD" else exchange.method
        try:
            found = self.routes.find(wanted, exchange.path)
        except ValueError:
            await self._refuse(exchange, BAD_PATH)
            return
        served = None if found is None else self._methods[found[0].method]
        if served is not None and exchange.method == "HEAD" and not served.is_safe:
            served = None
        if found is None or served is None:
            await self._answer_otherwise(exchange)
            return
        route, path = found
        exchange.handler = route.template.text
        wait = min(wait_of(exchange, served.pipeline.method), self._max_wait_seconds)
        pipeline = served.waiting if wait else served.pipeline
        refusal = self._refusal(exchange, pipeline)
        if refusal is not None:
            pipeline.refuse(refusal, exchange.peer)
            await self._fail(exchange, refusal.status, is_yandex=route.is_yandex)
            return
        fault = fault_of(exchange, route, pipeline)
        if fault is not None:
            await self._refuse(exchange, fault)
            return
        call = HttpCall(
            exchange,
            served.codec,
            path,
            self._unread,
            takes_body=route.takes_body,
            wait=wait,
            seconds=server_timeout(exchange.header("x-server-timeout")),
        )
        await self._run(exchange, pipeline, call, is_yandex=route.is_yandex)

    def _refusal(self, exchange: Exchange, pipeline: MethodPipeline) -> EarlyRefusal | None:
        if self._origins.refuses_page(exchange.header):
            return self._of_page
        if self._origins.refuses_host(exchange.header):
            return self._of_host
        return pipeline.early_refusal(len(exchange.headers))

    async def _run(
        self, exchange: Exchange, pipeline: MethodPipeline, call: HttpCall, *, is_yandex: bool
    ) -> None:
        try:
            await self._run_and_answer(exchange, pipeline, call, is_yandex=is_yandex)
        finally:
            call.was_read()

    async def _run_and_answer(
        self, exchange: Exchange, pipeline: MethodPipeline, call: HttpCall, *, is_yandex: bool
    ) -> None:
        try:
            status = await self._run_in_time(pipeline, call)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not call.gone or task is None:
                raise
            task.uncancel()
            return
        finally:
            await call.close()
        with_id = ((REQUEST_ID, call.request_id),)
        stream = call.stream
        if stream is not None and (status is None or exchange.started):
            await stream.end(status, with_id)
        elif status is not None:
            await self._fail(exchange, status, with_id, is_yandex=is_yandex)
        else:
            headers = [*call.headers_of_answer(), *with_id]
            answer, is_other_version = call.answer, call.is_other_version
            call.forget_payloads()  # which may be large, and the client slow
            if is_other_version:
                await self._refuse(exchange, OTHER_VERSION)
            elif answer is None:
                await exchange.respond(304, headers[1:], b"")
            else:
                await exchange.respond(200, headers, answer)

    @staticmethod
    async def _run_in_time(pipeline: MethodPipeline, call: HttpCall) -> Status | None:
        try:
            async with asyncio.timeout(call.seconds_left()):
                return await pipeline.run(call)
        except TimeoutError:
            return _GONE

    async def _answer_otherwise(self, exchange: Exchange) -> None:
        """A path or a method that is not served."""
        methods = self.routes.methods_at(exchange.path)
        if exchange.method == "OPTIONS" and exchange.path == "*":
            every = {route.http_method for route in self.routes.all} | {"HEAD", "OPTIONS"}
            await exchange.respond(204, [("allow", ", ".join(sorted(every)))], b"")
            return
        if not methods:
            await self._refuse(exchange, unknown_path(exchange.path))
            return
        read = self.routes.at("GET", exchange.path)
        if read is not None and self._methods[read.method].is_safe:
            methods.append("HEAD")
        if exchange.method == "OPTIONS":
            await exchange.respond(204, [allow(methods)], b"")
            return
        await self._refuse(exchange, wrong_http_method(exchange.method, methods))

    async def _refuse(self, exchange: Exchange, fault: Fault) -> None:
        """Answers what has reached no method, or is not to be told what the method has said."""
        headers, body = fault.answer(exchange.path, exchange.headers)
        await exchange.respond(fault.http_code, headers, body)

    async def _fail(
        self, exchange: Exchange, status: Status, headers: HttpHeaders = (), *, is_yandex: bool
    ) -> None:
        body = error_to_json(status, is_yandex=is_yandex)
        sent = [*error_headers(status), *headers]
        await exchange.respond(HTTP_CODES[status.code], sent, body)
