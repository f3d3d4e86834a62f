"""Everything that is served by HTTP, as one ASGI application: the API, probes, and what describes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from opservice.common.metrics import exposition, flush
from opservice.fronts.http.api import Api
from opservice.fronts.http.faults import Fault, allow, denied, wrong_http_method
from opservice.fronts.http.openapi import PATH, openapi_answer
from opservice.fronts.http.origins import Origins

Answer: TypeAlias = Callable[[Request], Awaitable[Response]]

_READS = ("GET", "HEAD")
_CORS_METHODS = ("GET", "HEAD", "POST", "DELETE")
_CORS_HEADERS = (
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Traceparent",
    "Tracestate",
    "X-Request-Id",
    "X-Server-Timeout",
)
_CORS_EXPOSED = ("ETag", "Preference-Applied", "Retry-After", "X-Request-Id")
_CORS_SECONDS = 600


def application(api: Api, origins: Origins, **answers: Answer) -> Starlette:
    """The application. `answers` are what is served beside the API: by their names, with GET and HEAD."""
    middleware = []
    if origins.allowed:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins.allowed,
                allow_methods=_CORS_METHODS,
                allow_headers=_CORS_HEADERS,
                expose_headers=_CORS_EXPOSED,
                max_age=_CORS_SECONDS,
            )
        )
    own = [_route(f"/{name}", answer) for name, answer in answers.items()]
    served = Starlette(routes=[*own, _route(PATH, openapi_answer())], middleware=middleware)
    # The API finds its routes itself: no pattern of Starlette's matches a path with a line break.
    served.router.default = api
    served.router.redirect_slashes = False
    return served


def monitoring(**answers: Answer) -> Starlette:
    """An application of nothing but these answers, by their names."""
    return Starlette(routes=[_route(f"/{name}", answer) for name, answer in answers.items()])


def _route(path: str, answer: Answer) -> Route:
    return Route(path, _Reads(answer))


class _Reads:
    """Served with GET and HEAD. Other methods are answered as the API answers them."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await self._respond(Request(scope)))(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        if request.method in _READS:
            return await self._answer(request)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=dict([allow(_READS)]))
        return _refused(request, wrong_http_method(request.method, _READS))


def _refused(request: Request, fault: Fault) -> Response:
    headers, body = fault.answer(request.url.path, request.headers.items())
    return Response(body, fault.http_code, dict(headers))


def for_monitors(answer: Answer, origins: Origins) -> Answer:
    """The answer, which needs no credentials.

    Web pages get 403, and so does whoever asks under a name that others may have made up.
    """

    async def checked(request: Request) -> Response:
        if not _is_foreign(request, origins):
            return await answer(request)
        message = "This is not for web pages, and is asked for by an address or localhost"
        return _refused(request, denied(message))

    return checked


def _is_foreign(request: Request, origins: Origins) -> bool:
    header = request.headers.get
    return origins.refuses_page(header) or origins.refuses_host(header)


async def metrics(request: Request) -> Response:
    """The metrics of the whole server, as Prometheus reads them."""
    accept = request.headers.get("accept", "")
    flush()
    body, kind = await asyncio.to_thread(exposition, accept)
    return Response(body, media_type=None, headers={"content-type": kind})


async def not_open(request: Request) -> Response:
    """Metrics are not for everybody who can connect, unless the operator says so."""
    message = (
        "Other machines can reach this address: set --metrics-listen to an address of its own, or to"
        " http for metrics here"
    )
    return _refused(request, denied(message))


async def alive(_request: Request) -> Response:
    """The event loop turns. That is all that it tells."""
    return JSONResponse({"alive": True}, headers={"cache-control": "no-store"})


def readiness(check: Callable[[], Awaitable[Sequence[str]]], origins: Origins) -> Answer:
    """Whether the server can serve. `check` returns why it cannot, nothing when it can.

    Pages that may not call, and whoever asks under a name that others may have made up, learn no reasons.
    """

    async def ready(request: Request) -> Response:
        reasons = list(await check())
        told = [] if _is_foreign(request, origins) else reasons
        content: dict[str, Any] = {"ready": not reasons, "reasons": told}
        headers = {"cache-control": "no-store"}
        return JSONResponse(content, 503 if reasons else 200, headers=headers)

    return ready
