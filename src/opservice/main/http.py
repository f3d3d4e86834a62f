"""The HTTP front of a server: put together, and kept with the TLS files that are in use."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

from opservice.common.addresses import is_loopback, split_address
from opservice.common.loggers import get_logger
from opservice.common.open_files import connections_of
from opservice.domain.operation import SECOND
from opservice.fronts.backpressure import UnreadResponses
from opservice.fronts.grpc.services import KnownTypes
from opservice.fronts.http.api import Api
from opservice.fronts.http.application import (
    alive,
    application,
    for_monitors,
    metrics,
    monitoring,
    not_open,
    readiness,
)
from opservice.fronts.http.origins import Origins
from opservice.fronts.http.server import HttpOptions, HttpServer
from opservice.methods.pipeline import Pipeline
from opservice.methods.protojson import ProtoJson
from opservice.methods.registry import Method
from opservice.runtime.components import Components
from opservice.runtime.security import Security
from opservice.runtime.settings import Settings
from opservice.runtime.settings.listening import OFF, WITH_HTTP
from opservice.runtime.tls import ReloadableTls, ssl_context

HTTP_PART = 2 / 3
"""Of the files for connections. The calls of a gRPC client share one; a stream of HTTP has its own."""
_MONITORS = 100
"""Connections that may monitor at a time."""
_RETRY_SECONDS = 1.0
"""After TLS files could not be taken over."""

log = get_logger("opservice.http")


class HttpFront:
    """REST, streams and probes on sockets that are bound."""

    def __init__(
        self,
        settings: Settings,
        security: Security,
        pipeline: Pipeline,
        methods: Iterable[Method],
        types: KnownTypes,
        unread: UnreadResponses,
        not_ready: Callable[[], Awaitable[Sequence[str]]],
    ) -> None:
        """`not_ready` returns why the server cannot serve, nothing when it can."""
        listening, connections = settings.listening, settings.connections
        origins = Origins(
            listening.cors_origin,
            only_local_names=listening.http_is_local and not settings.security.authenticates,
        )
        api = Api(
            pipeline,
            methods,
            ProtoJson(types),
            unread,
            origins,
            connections.max_message_bytes,
            math.ceil(settings.operations.max_wait / SECOND),
        )
        options = HttpOptions(
            max_connections=connections_of(connections.max_connections, HTTP_PART),
            handshake_timeout=connections.handshake_timeout,
        )
        answers = {"livez": alive, "readyz": readiness(not_ready, origins)}
        if not listening.has_metrics_listener and listening.metrics_listen != OFF:
            for_all = listening.metrics_listen == WITH_HTTP
            answers["metrics"] = (
                for_monitors(metrics, Origins((), only_local_names=not for_all))
                if for_all or listening.http_is_local
                else not_open
            )
        served = application(api, origins, **answers)
        self._server = HttpServer(served, options)
        self._tls = security.tls

    async def start(self, sockets: Sequence[socket.socket], components: Components) -> None:
        """Takes connections from now on."""
        if self._tls is None:
            self._server.start(sockets, None)
        else:
            replaced = asyncio.Event()
            self._tls.when_replaced = replaced.set
            context = await asyncio.to_thread(ssl_context, self._tls.files)
            self._server.start(sockets, context)
            components.start("TLS of HTTP", follow_tls(self._server, self._tls, replaced))
        components.start("the clock of HTTP", self._server.keep_time())

    async def stop(self, seconds: float) -> None:
        """Lets requests end, at most for so many seconds."""
        await self._server.stop(seconds)


async def follow_tls(server: HttpServer, tls: ReloadableTls, replaced: asyncio.Event) -> None:
    """Has the server use TLS files that were reloaded, whenever `replaced` is set."""
    while True:
        await replaced.wait()
        replaced.clear()
        try:
            context = await asyncio.to_thread(ssl_context, tls.files)
        except OSError as error:  # OpenSSL opens files to read these, and there may be none left
            log.warning("HTTP has to wait for the new TLS files", reason=error.strerror)
            replaced.set()
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            server.replace_tls(context)


class MetricsFront:
    """Metrics and probes on an address of their own, in plaintext: for those who monitor."""

    def __init__(
        self, settings: Settings, not_ready: Callable[[], Awaitable[Sequence[str]]]
    ) -> None:
        """`not_ready` is as for HttpFront."""
        host, _ = split_address(settings.listening.metrics_listen)
        origins = Origins((), only_local_names=is_loopback(host))
        served = monitoring(
            livez=alive,
            metrics=for_monitors(metrics, origins),
            readyz=readiness(not_ready, origins),
        )
        self._server = HttpServer(
            served,
            HttpOptions(
                max_connections=_MONITORS, handshake_timeout=settings.connections.handshake_timeout
            ),
        )

    async def start(self, sockets: Sequence[socket.socket], components: Components) -> None:
        """Takes connections from now on."""
        self._server.start(sockets, None)
        components.start("the clock of metrics", self._server.keep_time())

    async def stop(self, seconds: float) -> None:
        """As HttpFront does."""
        await self._server.stop(seconds)
