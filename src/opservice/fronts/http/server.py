"""uvicorn's HTTP/1.1 on an event loop of ours, bounded in connections, in headers, and in time.

uvicorn's own server takes the process's signals, and its protocol bounds neither headers nor the time that
they may take. What it does with a request is as it is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from opservice.domain.operation import SECOND

MAX_HEAD_BYTES = 64 << 10
"""Of a request line and headers."""

_KEEP_ALIVE_SECONDS = 75
"""Longer than nginx and others keep an idle connection, so that it is they who end it."""
_BACKLOG = 2048
_LOOK_SECONDS = 0.05

_quiet = logging.getLogger("opservice.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """The settings of the same names; `handshake_timeout` in microseconds."""

    max_connections: int
    handshake_timeout: int


class HttpServer:
    """Serves an ASGI application on sockets that are bound."""

    def __init__(self, application: Any, options: HttpOptions) -> None:
        self._config = Config(
            application,
            http=_Protocol,
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
        self._stopping = False

    async def start(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Takes connections on the sockets from now on. Called again, with other TLS for new connections.

        The sockets stay the caller's.
        """
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
        self._stopping = True
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        deadline = time.monotonic() + seconds
        while self._state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - it is uvicorn's set
            await asyncio.sleep(_LOOK_SECONDS)
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        for connection in list(self._state.connections):
            cast("_Protocol", connection).transport.abort()
        if tasks:
            await asyncio.wait(tasks)

    def _protocol(self) -> asyncio.Protocol:
        return _Protocol(self._config, self._state, self._options, self._is_full)

    def _is_full(self) -> bool:
        return self._stopping or len(self._state.connections) >= self._options.max_connections

    async def _keep_time(self) -> None:
        while True:
            self._state.default_headers = [
                (b"date", formatdate(time.time(), usegmt=True).encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
            await asyncio.sleep(1)


class _Protocol(HttpToolsProtocol):
    """A connection, with bounds."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        options: HttpOptions,
        is_full: Callable[[], bool],
    ) -> None:
        super().__init__(config, server_state, {})
        self.logger = _quiet  # what anybody can cause as often as they like is told at debug only
        self._seconds = options.handshake_timeout / SECOND
        self._is_full = is_full
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if self._is_full():
            transport.abort()
            return
        super().connection_made(transport)
        _keep_alive(transport.get_extra_info("socket"))
        encrypted = transport.get_extra_info("ssl_object")
        der = None if encrypted is None else encrypted.getpeercert(binary_form=True)
        self.app_state = {
            "abort": transport.abort,
            "certificate": None if der is None else ssl.DER_cert_to_PEM_cert(der).encode(),
            "secure": encrypted is not None,
        }
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        if self.transport is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._head_timer is None and self._in_head:
            self._expect_head()
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "The request line and headers are too long.")

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            # Raised through the parser, so that no task is started for the request.
            raise ValueError("the request line and headers are too long")
        self._in_head = False
        self._forget_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def _expect_head(self) -> None:
        """Ends the connection when the headers of a request do not come in time."""
        self._head_timer = self.loop.call_later(self._seconds, self._end)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(408, "The request did not arrive in time.")
        else:
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        head = b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(message) + message.encode())
        self.transport.close()


def _keep_alive(connection: Any) -> None:
    """Has the kernel notice peers that are gone without a word."""
    with suppress(OSError, AttributeError):  # not each system has each of these
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
