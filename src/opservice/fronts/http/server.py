"""uvicorn's HTTP/1.1 on an event loop of ours: its own server takes the process's signals."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Coroutine, Sequence
from email.utils import formatdate
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from opservice.domain.operation import SECOND
from opservice.fronts.http.connection import Connection, HttpOptions, Room

_KEEP_ALIVE_SECONDS = 75
"""Longer than nginx and others keep an idle connection, so that it is they who end it."""
_BACKLOG = 2048
_LOOK_SECONDS = 0.05


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
        self._options = options
        self._handshake_seconds = options.handshake_timeout / SECOND
        self._servers: list[asyncio.Server] = []
        self._sockets: Sequence[socket.socket] = ()
        self._room = Room(self._state, options.max_connections)

    async def start(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Takes connections on the sockets from now on. Called again, with other TLS for new connections.

        The sockets are closed when the server stops.
        """
        self._sockets = sockets
        before, self._servers = self._servers, []
        for each in sockets:
            server = await asyncio.get_running_loop().create_server(
                self._protocol,
                sock=each.dup(),
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self._handshake_seconds,
                backlog=_BACKLOG,
            )
            self._servers.append(server)
        for server in before:
            server.close()

    def keep_time(self) -> Coroutine[Any, Any, None]:
        """Tells the time in each response: to be run beside the server."""
        return self._keep_time()

    async def stop(self, seconds: float) -> None:
        """Takes no more connections, and ends the requests that are still there after so many seconds."""
        self._room.stopping = True
        for _ in range(2):  # what the kernel has already is taken
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        for each in self._sockets:  # else the kernel would go on taking connections for them
            each.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = time.monotonic() + seconds
        while self._state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - it is uvicorn's set
            await asyncio.sleep(_LOOK_SECONDS)
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
            if not self._room.stopping:
                raise

    def _protocol(self) -> asyncio.Protocol:
        return Connection(self._config, self._state, self._options, self._room)

    async def _keep_time(self) -> None:
        while True:
            self._state.default_headers = [
                (b"date", formatdate(time.time(), usegmt=True).encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            await asyncio.sleep(1)
