"""One HTTP request and its response, over ASGI: bounded in size and time, and told when the client leaves."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from opservice.domain.errors import MalformedRequest, RequestTooLarge
from opservice.fronts.http.conditions import weights
from opservice.methods.call import ClientGone

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HttpHeaders: TypeAlias = Sequence[tuple[str, str]]

_LARGE = 64 << 10
"""Bytes from which on a body is compressed on a thread."""

_BODY_SECONDS = 30.0
"""For a whole body to arrive."""
_PIECE = 64 << 10
_SKIPPED_BYTES, _SKIP_SECONDS = 256 << 10, 1.0
"""Of a body that is not wanted. A connection that is closed with bytes unread may lose the answer, too."""
_LEAST_COMPRESSED = 1 << 10
_COMPRESSION_LEVEL = 5


class Exchange:
    """A request, and the response to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path = scope["raw_path"].decode("ascii")
        self.query: bytes = scope["query_string"]
        self.headers: list[tuple[str, str]] = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        self._of_name: dict[str, str] = {}
        for name, value in self.headers:
            known = self._of_name.get(name)
            self._of_name[name] = value if known is None else f"{known}, {value}"
        self._state = scope["state"]
        self._client = scope["client"]
        self._receive = receive
        self._send = send
        self._body_was_read = False
        self._body_is_held = (self.header("expect") or "").lower() == "100-continue" and scope[
            "http_version"
        ] != "1.0"
        """Whether the client waits for an answer, or to be asked, before they send the body."""
        self.started = False
        """Whether the response has begun."""
        self.status = 499
        """Of the response; 499 while there is none: if there never is, the client has left."""
        self.handler = ""
        """The path of the route, as its template has it; empty without one."""

    def header(self, name: str) -> str | None:
        """The value of a header, given in lower case; several are joined by commas."""
        return self._of_name.get(name)

    @property
    def peer(self) -> str:
        """Where the request comes from, as gRPC writes it."""
        host, port = self._client or ("", 0)
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    @property
    def certificate(self) -> bytes | None:
        """The client's, as PEM."""
        found: bytes | None = self._state["certificate"]
        return found

    @property
    def has_body(self) -> bool:
        """Whether the request has a body, of at least one byte when its length is told."""
        told = self.header("content-length")
        return self.header("transfer-encoding") is not None or told not in {None, "0"}

    async def body(self, most: int) -> bytes:
        """The whole body. Raises RequestTooLarge, MalformedRequest when it is too slow, or ClientGone."""
        declared = self.header("content-length")
        if declared is not None and int(declared) > most:
            raise RequestTooLarge(f"The body has {declared} bytes, at most {most} are allowed")
        self._body_is_held = False
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise RequestTooLarge(f"The body has more than {most} bytes")
                    parts.append(part)
                    if not message.get("more_body", False):
                        break
        except TimeoutError as error:
            raise MalformedRequest(
                f"The body did not arrive within {_BODY_SECONDS:g} seconds"
            ) from error
        self._body_was_read = True
        return b"".join(parts)

    async def gone(self) -> None:
        """Returns once the client has left. To be called after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def respond(self, status: int, headers: HttpHeaders, body: bytes) -> None:
        """Sends a whole response. Raises ClientGone."""
        extra: list[tuple[str, str]] = []
        if status != 204:
            # Also where this body is short, or there is none: the next one at this URL may be compressed.
            extra.append(("vary", "accept-encoding"))
            if len(body) >= _LEAST_COMPRESSED and accepts_gzip(self.header("accept-encoding")):
                body = await _compressed(body)
                extra.append(("content-encoding", "gzip"))
                headers = [_weakened(*header) for header in headers]
        if status not in {204, 304}:
            extra.append(("content-length", str(len(body))))
        await self.start(status, [*headers, *extra])
        view = memoryview(body)
        for at in range(0, len(body), _PIECE):
            await self.write(bytes(view[at : at + _PIECE]))
        await self.finish()

    async def start(self, status: int, headers: HttpHeaders) -> None:
        """Sends the status and the headers."""
        sent = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        if self.has_body and not (self._body_was_read or await self._skip_body()):
            # Else the rest of the body would be read, however long it is, to get to the next request.
            sent.append((b"connection", b"close"))
        self.started = True
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": sent})

    async def _skip_body(self) -> bool:
        """Reads a short body that nobody wants. Returns whether that was all of it."""
        if self._body_is_held:
            return False
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_SKIP_SECONDS):
                while size < _SKIPPED_BYTES:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return True
        return False

    async def write(self, part: bytes) -> None:
        """Sends a part of the body, once the connection takes more."""
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def finish(self) -> None:
        """Ends the response."""
        await self._send({"type": "http.response.body", "body": b""})


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a client takes gzip (RFC 9110, section 12.5.3)."""
    if accept_encoding is None:
        return False
    codings = weights(accept_encoding)
    return codings.get("gzip", codings.get("*", 0)) > 0


async def _compressed(body: bytes) -> bytes:
    if len(body) < _LARGE:
        return gzipped(body)
    return await asyncio.to_thread(gzipped, body)


def gzipped(body: bytes) -> bytes:
    """Compressed, rather quickly than well."""
    return zlib.compress(body, _COMPRESSION_LEVEL, wbits=16 + zlib.MAX_WBITS)


def _weakened(name: str, value: str) -> tuple[str, str]:
    """An ETag says, as a weak one, that the content is the same, and not that each byte is."""
    return (name, f"W/{value}") if name == "etag" and value.startswith('"') else (name, value)
