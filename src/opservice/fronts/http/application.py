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

from opservice.common.metrics import exposition, flush
from opservice.fronts.http.api import Api
from opservice.fronts.http.openapi import openapi_route
from opservice.fronts.http.origins import Origins

Answer: TypeAlias = Callable[[Request], Awaitable[Response]]

_CORS_METHODS = ("GET", "HEAD", "POST", "DELETE")
_CORS_HEADERS = (
    "Authorization",
    "Content-Type",
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
    own = [Route(f"/{name}", answer, methods=["GET"]) for name, answer in answers.items()]
    served = Starlette(routes=[*own, openapi_route()], middleware=middleware)
    # The API finds its routes itself: no pattern of Starlette's matches a path with a line break.
    served.router.default = api
    served.router.redirect_slashes = False
    return served


def monitoring(**answers: Answer) -> Starlette:
    """An application of nothing but these answers, by their names."""
    return Starlette(
        routes=[Route(f"/{name}", answer, methods=["GET"]) for name, answer in answers.items()]
    )


async def metrics(request: Request) -> Response:
    """The metrics of the whole server, as Prometheus reads them."""
    accept = request.headers.get("accept", "")
    flush()
    body, kind = await asyncio.to_thread(exposition, accept)
    return Response(body, media_type=None, headers={"content-type": kind})


async def not_open(_request: Request) -> Response:
    """Metrics are not for everybody who can connect, unless the operator says so."""
    message = (
        "Other machines can reach this address: set --metrics-listen to an address of its own, or to"
        " http for metrics here"
    )
    return JSONResponse({"error": {"code": 403, "message": message}}, 403)


async def alive(_request: Request) -> Response:
    """The event loop turns. That is all that it tells."""
    return JSONResponse({"alive": True}, headers={"cache-control": "no-store"})


def readiness(check: Callable[[], Awaitable[Sequence[str]]]) -> Answer:
    """Whether the server can serve. `check` returns why it cannot, nothing when it can."""

    async def ready(_request: Request) -> Response:
        reasons = list(await check())
        content: dict[str, Any] = {"ready": not reasons, "reasons": reasons}
        headers = {"cache-control": "no-store"}
        return JSONResponse(content, 503 if reasons else 200, headers=headers)

    return ready
