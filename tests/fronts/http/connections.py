"""A server for the tests of connections: with an application of their own, and clients that send bytes."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from opservice.domain.operation import SECOND
from opservice.fronts.http.server import HttpOptions, HttpServer

HOST = b"Host: localhost\r\n"
GET = b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n"
WAIT = b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n"
PATIENCE = 30.0
_PIECE = 8_000


class Application:
    """`/echo` tells the method, the headers and the body; `/wait` ends with `release`; `/rude` reads no body;
    `/large` is more than a connection takes unread; `/parts` has two parts, and does not say how long it is.
    """

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.waiting = 0
        self.left = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        answers: dict[str, Callable[..., Awaitable[bytes]]] = {
            "/echo": self._echo,
            "/wait": self._wait,
            "/rude": self._rude,
            "/large": self._large,
        }
        if scope["path"] == "/parts":
            await self._parts(send)
            return
        body = await answers[scope["path"]](scope, receive)
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"content-length", b"%d" % len(body))]})  # fmt: skip
        await send({"type": "http.response.body", "body": body})

    async def _echo(self, scope: Any, receive: Any) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        names = b",".join(name for name, _ in scope["headers"])
        return b"%s %s %s" % (scope["method"].encode(), names, body)

    async def _parts(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one ", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _wait(self, _scope: Any, receive: Any) -> bytes:
        await receive()
        self.waiting += 1
        gone = asyncio.create_task(receive())
        released = asyncio.create_task(self.release.wait())
        await asyncio.wait((gone, released), return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and gone.result()["type"] == "http.disconnect":
            self.left.set()
        for task in (gone, released):
            task.cancel()
        return b"released"

    async def _rude(self, _scope: Any, _receive: Any) -> bytes:
        return b"rude"

    async def _large(self, _scope: Any, _receive: Any) -> bytes:
        return bytes(32 << 20)


class Client:
    """What a client sends and gets, in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *parts: bytes) -> None:
        """Each part by itself, so that the server is likely to read them so."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0.01)

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the next answer."""
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            body = await self.reader.readexactly(int(fields.get(b"content-length", b"0")))
        return int(head.split()[1]), body

    async def refusal(self, sent: bytes) -> int:
        """The status of the answer that comes before all of it was sent."""
        refused = asyncio.create_task(self.answer())
        for at in range(0, len(sent), _PIECE):
            await self.send(sent[at : at + _PIECE])
            if refused.done():
                return refused.result()[0]
        refused.cancel()
        raise AssertionError("all of it was taken")

    async def ended(self) -> bytes:
        """What comes before the connection is ended."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def ask(self, *parts: bytes) -> tuple[int, bytes]:
        await self.send(*parts)
        return await self.answer()


class Served:
    def __init__(self, server: HttpServer, application: Application, port: int) -> None:
        self.server, self.application, self.port = server, application, port

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


@asynccontextmanager
async def serving(
    *, seconds: float = 20, most: int = 100, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Served]:
    application = Application()
    options = HttpOptions(max_connections=most, handshake_timeout=int(seconds * SECOND))
    server = HttpServer(application, options)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server.start([bound], tls)
        try:
            yield Served(server, application, bound.getsockname()[1])
        finally:
            await server.stop(0)


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not look():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


def idle(served: Served) -> bool:
    return not served.server._state.connections


def cycles() -> int:
    gc.collect()
    return living()


def living() -> int:
    return sum(isinstance(each, RequestResponseCycle) for each in gc.get_objects())
