"""uvicorn's HTTP/1.1 on an event loop of ours: its own server takes the process's signals."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from opservice.domain.operation import SECOND
from opservice.fronts.http.connection import LATE_SECONDS, Connection, Connections
from opservice.fronts.http.listener import Listener

_KEEP_ALIVE_SECONDS = 75
"""Longer than nginx and others keep an idle connection, so that it is they who end it."""
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """The settings of the same names; `handshake_timeout` in microseconds."""

    max_connections: int
    handshake_timeout: int


class HttpServer:
    """Serves an ASGI application on sockets that are bound."""

    def __init__(self, application: Any, options: HttpOptions) -> None:
        self._application = application
        self._config = Config(
            self._serve,
            http=Connection,
            loop="none",
            lifespan="off",
            interface="asgi3",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._state = ServerState()
        self._shared = Connections()
        self._seconds = options.handshake_timeout / SECOND
        self._listener = Listener(
            self._protocol, self._state.connections, options.max_connections, self._seconds
        )

    def start(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Takes connections on the sockets from now on. They are closed when the server stops."""
        self._listener.tls = tls
        self._tell_time()
        self._listener.start(sockets)

    def replace_tls(self, tls: ssl.SSLContext) -> None:
        """Uses this TLS for connections that are taken from now on."""
        self._listener.tls = tls

    def keep_time(self) -> Coroutine[Any, Any, None]:
        """Tells the time in each response: to be run beside the server."""
        return self._keep_time()

    async def stop(self, seconds: float) -> None:
        """Takes no more connections, and ends the requests that are still there after so many seconds."""
        self._shared.stopping = True
        self._listener.stop(LATE_SECONDS)
        await asyncio.sleep(0)  # what was taken just now begins, else nobody would close it
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = time.monotonic() + seconds
        there = self._state.connections, self._listener.arriving
        while any(there) and time.monotonic() < deadline:
            self._tell_time()
            await asyncio.sleep(_LOOK_SECONDS)
        self._listener.abort()
        for connection in list(self._state.connections):
            cast("Connection", connection).transport.abort()
        await asyncio.sleep(0)  # so that each is told, and nothing is logged of it
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._application(scope, receive, send)
        except asyncio.CancelledError:
            if not self._shared.stopping:
                raise

    def _protocol(self) -> asyncio.Protocol:
        return Connection(self._config, self._state, self._seconds, self._shared)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._tell_time()

    def _tell_time(self) -> None:
        # In the same list: a request keeps it from its beginning on, and may be answered a minute later.
        self._state.default_headers[:] = [
            (b"date", formatdate(time.time(), usegmt=True).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
