"""An HTTP/1.1 connection: uvicorn's protocol, bounded in headers, in what waits, and in time.

uvicorn bounds neither headers, nor how many requests wait on a connection, nor the time that any of it may
take. What it does with a request is as it is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from opservice.fronts.http.unframed import without_chunks
from opservice.methods.pipeline import MAX_HEADERS

MAX_HEAD_BYTES = 64 << 10
"""Of a request line and headers."""

_MAX_HEADERS = 2 * MAX_HEADERS
"""Those beyond it are not kept. Calls may have MAX_HEADERS, and are told so."""
_MAX_PIPELINED = 16
"""Requests that wait for the answer to an earlier one, on the same connection."""
_SMALL_PART, _MAX_SMALL_PARTS = 64, 2_000
"""Bytes, and how many parts of a body may be smaller, on average."""
_WRITE_SECONDS = 60.0
"""Without the client reading anything. Then the connection is ended."""
LATE_SECONDS = 1.0
"""For the request of a connection, or the handshake before it, when the server stops."""
_GOODBYE_SECONDS = 5.0
"""For a client of TLS to read the last of an answer, and to end TLS as well, when the server stops."""
_TOLD_AT_ONCE = 10
"""Connections that learn in one turn of the event loop that they are lost."""
_TOO_LONG = "The request line and headers are too long."

_quiet = logging.getLogger("opservice.http")


class Connections:
    """What the connections of one server share."""

    def __init__(self) -> None:
        self.stopping = False
        """Whether the server stops. Then each connection gets one answer more."""
        self._lost: deque[Callable[[], None]] = deque()

    def lost(self, tell: Callable[[], None]) -> None:
        """A connection is lost. It is told in its turn: thousands may be lost at once."""
        if not self._lost:
            asyncio.get_running_loop().call_soon(self._tell_some)
        self._lost.append(tell)

    def _tell_some(self) -> None:
        some = [self._lost.popleft() for _ in range(min(_TOLD_AT_ONCE, len(self._lost)))]
        if self._lost:
            asyncio.get_running_loop().call_soon(self._tell_some)
        for tell in some:
            asyncio.get_running_loop().call_soon(tell)  # apart: what one raises concerns no other


class Connection(HttpToolsProtocol):
    """A connection, with bounds."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        head_seconds: float,
        shared: Connections,
    ) -> None:
        super().__init__(config, server_state, {})
        self.logger = _quiet  # what anybody can cause as often as they like is told at debug only
        self._head_seconds = head_seconds
        self._shared = shared
        self._in_head = True
        self._head_bytes = 0
        """Of the head of this request, and of its trailers, as far as they were parsed."""
        self._unparsed_bytes = 0
        """That have come since the parser last made something of them: of one endless line."""
        self._body_bytes = self._parts = 0
        self._is_too_long = False
        self._running: RequestResponseCycle | None = None
        """The request that is being answered. `cycle` is the last one, which may wait behind it."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        _keep_alive(transport.get_extra_info("socket"))
        encrypted = transport.get_extra_info("ssl_object")
        der = None if encrypted is None else encrypted.getpeercert(binary_form=True)
        self.app_state = {
            "certificate": None if der is None else ssl.DER_cert_to_PEM_cert(der).encode(),
        }
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True  # nothing more is written
        self._shared.lost(partial(self._lose, exc))

    def _lose(self, exc: Exception | None) -> None:
        """What waits for the client learns that they have left."""
        self._forget_head_timer()
        self._forget_unread_timer()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        super().connection_lost(exc)
        if self._running is not None:
            self._running.message_event.set()
        if self.cycle is not self._running:
            # It will never run, and the two would keep each other until a garbage collection.
            self.cycle = None  # type: ignore[assignment] # as uvicorn has it before the first request

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        before = self._unparsed_bytes = self._unparsed_bytes + len(data)
        try:
            self._feed(data)
        except HttpParserError:
            if self._is_too_long:
                self._refuse(431, _TOO_LONG)
            else:
                self._refuse(400, "The request is not HTTP/1.1.")
        else:
            if self._unparsed_bytes == before > MAX_HEAD_BYTES:
                self._refuse(431, _TOO_LONG)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # No other protocol is spoken here. The parser would now take the body for the next request.
            target = (
                self.scope["method"].encode(),
                self.url,
                self.parser.get_http_version().encode(),
            )
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self._feed(_without_upgrade(b"%s %s HTTP/%s" % target, self.headers))
            self._feed(data[upgrade.args[0] :])

    # Parser callbacks. What they raise ends the parsing, as an HttpParserError.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        if self._head_timer is None:
            self._expect_head()
        self._head_bytes = self._body_bytes = self._parts = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        # A trailer is none of the request's headers: whatever is between may not have looked at it.
        if self._in_head:
            if len(self.headers) >= _MAX_HEADERS:
                self._is_too_long = True
                raise ValueError("too many headers")
            super().on_header(name, value.rstrip(b" \t"))  # RFC 9112, section 5.1

    def on_headers_complete(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self.scope["method"] = method.decode("ascii")
        if method == b"CONNECT" or version not in {"1.0", "1.1"}:
            raise ValueError("no request to a server of HTTP/1.1")
        if self.parser.should_upgrade():
            return
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and version == "1.1"):
            raise ValueError("RFC 9112, section 3.2")
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise ValueError("RFC 9112, section 6.1")
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests on one connection at a time")
        super().on_headers_complete()
        self.flow.resume_reading()  # else nobody would notice that the client leaves
        self._in_head = False
        self._forget_head_timer()
        if self._shared.stopping:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        self._parts += 1
        self._body_bytes += len(body)
        if self._parts > max(_MAX_SMALL_PARTS, self._body_bytes // _SMALL_PART):
            raise ValueError("too many small chunks")  # each costs as much as a large one
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._in_head:  # the request is parsed again, without the upgrade that it asks for
            return
        self._unparsed_bytes = 0
        self._in_head = True
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._is_too_long = True
            raise ValueError(_TOO_LONG)

    # What uvicorn does with requests and responses.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = without_chunks(cycle, app)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if not self.pipeline and not self._in_head:
            self.transport.close()  # nobody wants the rest of the body, however long it is
        super().on_response_complete()
        if self._head_timer is not None:  # another request has begun to arrive
            self._unset_keepalive_if_required()
        if self.transport.is_closing():
            self._expect_reading()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._forget_unread_timer()

    def shutdown(self) -> None:
        """Ends the connection after its last answer. A request may have been sent that was not read yet."""
        if self.transport.is_closing():
            self._expect_reading()
            return
        if self._head_timer is not None and (self.cycle is None or self.cycle.response_complete):
            self._forget_head_timer()
            self._expect_head()
            return
        super().shutdown()
        if self.transport.is_closing():
            self._expect_reading()

    def _expect_head(self) -> None:
        """Ends the connection when the headers of a request do not come in time."""
        seconds = LATE_SECONDS if self._shared.stopping else self._head_seconds
        self._head_timer = self.loop.call_later(
            seconds, self._refuse, 408, "The request did not arrive in time."
        )

    def _forget_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _expect_reading(self) -> None:
        """Ends the connection when the client does not read, in time, what was written for them."""
        # A client that keeps a connection for later does not look whether the server has ended it.
        ends = self._shared.stopping and self.transport.is_closing() and self.scheme == "https"
        if ends:
            self._forget_unread_timer()
        if self._unread_timer is None:
            seconds = _GOODBYE_SECONDS if ends else _WRITE_SECONDS
            self._unread_timer = self.loop.call_later(seconds, self.transport.abort)

    def _forget_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _may_answer(self) -> bool:
        """Whether an answer now would not be taken for the one to another request, or for a part of it."""
        running = self._running
        if running is None or running.response_complete:
            return True
        return running is self.cycle and not (self._in_head or running.response_started)

    def _refuse(self, status: int, message: str) -> None:
        """Ends the connection, with an answer to the request that is being read, if that is its turn."""
        if self.transport.is_closing():
            return
        if not self._may_answer():
            self.transport.abort()
            return
        own = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        own.append((b"content-length", b"%d" % len(message)))
        lines = (b"%s: %s\r\n" % each for each in (*self.server_state.default_headers, *own))
        self.transport.write(
            b"%s%s\r\n%s" % (STATUS_LINE[status], b"".join(lines), message.encode())
        )
        self.transport.close()
        self._expect_reading()


def _without_upgrade(request_line: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The head of a request that does not ask for another protocol."""
    lines = [request_line]
    for name, value in headers:
        if name == b"connection":
            kept = (each for each in value.split(b",") if each.strip().lower() != b"upgrade")
            value = b",".join(kept)
        if name != b"upgrade":
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


def _keep_alive(connection: Any) -> None:
    """Has the kernel notice peers that are gone without a word."""
    with suppress(OSError, AttributeError):  # not each system has each of these
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
