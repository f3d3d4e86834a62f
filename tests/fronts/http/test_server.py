"""Connections: what clients may do to one, and what of it ends it."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from opservice.domain.operation import SECOND
from opservice.fronts.http import connection as module
from opservice.fronts.http.connection import MAX_HEAD_BYTES
from opservice.fronts.http.server import HttpOptions, HttpServer
from support.certificates import Authority, client_context

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


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as made:
        yield made


def post(body: bytes, *headers: bytes, path: bytes = b"/echo") -> bytes:
    lines = b"".join(each + b"\r\n" for each in headers)
    return b"POST %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (
        path, HOST, lines, len(body), body)  # fmt: skip


REFUSED = {
    "bare line feeds": b"GET /echo HTTP/1.1\nHost: a\n\n",
    "a header over two lines": b"GET /echo HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "a space before the colon": b"GET /echo HTTP/1.1\r\nHost : a\r\n\r\n",
    "a null": b"GET /echo HTTP/1.1\r\nHost: a\0\r\n\r\n",
    "no host": b"GET /echo HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "both lengths": post(b"x", b"Transfer-Encoding: chunked"),
    "two lengths": post(b"x", b"Content-Length: 1"),
    "a list of lengths": b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
    "a signed length": b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
    "a length that is no number": b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    "a length without end": b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n"
    % (b"9" * 40),
    "no chunks at last": b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    "chunks by another name": b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "a chunk of no size": b"POST /echo HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    % HOST,
    "a chunk without end": b"POST /echo HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n%s\r\n"
    % (HOST, b"f" * 20),
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    "no ASCII": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "no path": b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
async def test_what_is_not_plain_http_is_refused_and_ends_the_connection(
    served: Served, sent: bytes
) -> None:
    async with served.connect() as connection:
        status, _ = await connection.ask(sent)
        assert status == 400
        assert await connection.ended() == b""


async def test_a_body_may_come_in_pieces_of_any_size(served: Served) -> None:
    """The end of a body does not count as the beginning of the next request's head."""
    large = bytes(300_000)
    async with served.connect() as connection:
        for _ in range(2):
            status, body = await connection.ask(post(large))
            assert (status, body) == (200, b"POST host,content-length " + large)
        status, _ = await connection.ask(GET[:20], GET[20:])
        assert status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 2 * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 2 * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"X: %s\r\n" % (b"a" * 1000) * 100,
        b"\r\n" * MAX_HEAD_BYTES,
    ],
    ids=["request line", "one header", "many headers", "long headers", "empty lines"],
)
async def test_a_head_that_is_too_long_is_refused_before_its_end(
    served: Served, sent: bytes
) -> None:
    async with served.connect() as connection:
        assert await connection.refusal(sent) == 431


@pytest.mark.parametrize(
    "endless",
    [b"0\r\n" + b"X: a\r\n" * 50_000, b"0\r\nX: " + b"a" * 300_000, b"1;" + b"a" * 300_000],
    ids=["trailers", "one trailer", "a chunk's extension"],
)
async def test_what_comes_beside_a_body_is_bounded(served: Served, endless: bytes) -> None:
    head = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    async with served.connect() as connection:
        await connection.send(head)
        assert await connection.refusal(endless) == 431


async def test_a_body_may_have_many_chunks_but_not_many_tiny_ones(served: Served) -> None:
    head = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    async with served.connect() as connection:
        chunks = b"1\r\nx\r\n" * 1_000 + b"80\r\n%s\r\n" % bytes(128) * 4_000 + b"0\r\n\r\n"
        status, body = await connection.ask(head + chunks)
        assert (status, body[-129_000:]) == (200, bytes(129_000))
        assert (await connection.ask(head + b"1\r\nx\r\n" * 3_000))[0] == 400


@pytest.mark.parametrize(
    ("version", "is_chunked"), [(b"1.0", False), (b"1.1", True)], ids=["1.0", "1.1"]
)
async def test_only_who_knows_chunks_is_sent_chunks(
    served: Served, version: bytes, is_chunked: bool
) -> None:
    async with served.connect() as connection:
        await connection.send(
            b"GET /parts HTTP/%s\r\n%sConnection: close\r\n\r\n" % (version, HOST)
        )
        head, _, body = (await connection.ended()).partition(b"\r\n\r\n")
        assert (b"\r\ntransfer-encoding: chunked" in head) is is_chunked
        assert body == (b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n" if is_chunked else b"one two")


async def test_a_trailer_is_none_of_the_headers(served: Served) -> None:
    sent = (
        b"POST /echo HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\nx\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
    ) % HOST
    async with served.connect() as connection:
        assert await connection.ask(sent) == (200, b"POST host,transfer-encoding x")


@pytest.mark.parametrize("asked", [b"h2c", b"websocket"])
async def test_an_upgrade_is_passed_over_and_the_body_belongs_to_its_request(
    served: Served, asked: bytes
) -> None:
    """As Java's client asks for, by default. Taken for a request, the body would smuggle one."""
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + asked)
    sent = post(GET, *upgrade)
    async with served.connect() as connection:
        for parts in ([sent], [sent[:-30], sent[-30:]], [sent[: -len(GET)], GET]):
            assert await connection.ask(*parts) == (
                200,
                b"POST host,connection,content-length " + GET,
            )
        assert (await connection.ask(GET))[0] == 200


async def test_requests_may_follow_before_they_are_answered(served: Served) -> None:
    async with served.connect() as connection:
        await connection.send((GET + post(b"x")) * 8)
        for _ in range(8):
            assert await connection.answer() == (200, b"GET host ")
            assert await connection.answer() == (200, b"POST host,content-length x")


async def test_so_many_requests_may_wait_for_an_answer_and_no_more(served: Served) -> None:
    async with served.connect() as connection:
        await connection.send(WAIT + GET * 10_000)
        assert await connection.ended() == b""
    await until(lambda: served.application.left.is_set() or not served.application.waiting)
    await until(lambda: cycles() == 0)


async def test_requests_that_never_begin_are_freed_without_garbage_collection(
    served: Served,
) -> None:
    gc.collect()
    gc.disable()
    try:
        async with served.connect() as connection:
            await connection.send(WAIT, GET, GET)
            await until(lambda: served.application.waiting == 1)
        await until(lambda: idle(served) and not living())
    finally:
        gc.enable()


def cycles() -> int:
    gc.collect()
    return living()


def living() -> int:
    return sum(isinstance(each, RequestResponseCycle) for each in gc.get_objects())


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not look():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


async def test_a_request_learns_that_its_client_left_also_when_another_waits_behind_it(
    served: Served,
) -> None:
    async with served.connect() as connection:
        await connection.send(WAIT, GET)
        await until(lambda: served.application.waiting == 1)
    async with asyncio.timeout(PATIENCE):
        await served.application.left.wait()


async def test_what_is_wrong_with_a_later_request_is_no_answer_to_an_earlier_one(
    served: Served,
) -> None:
    async with served.connect() as connection:
        await connection.send(WAIT)
        await until(lambda: served.application.waiting == 1)
        await connection.send(b"no HTTP\r\n\r\n")
        assert await connection.ended() == b""


async def test_a_connection_ends_after_an_answer_to_half_a_request(served: Served) -> None:
    """Else it would have no time limit: nobody reads the rest."""
    async with served.connect() as connection:
        status, _ = await connection.ask(post(bytes(10), path=b"/rude")[:-5])
        assert status == 200
        assert await connection.ended() == b""


async def test_who_reads_nothing_loses_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WRITE_SECONDS", 0.2)
    async with served.connect() as connection:
        await connection.send(GET.replace(b"/echo", b"/large"))
        await until(lambda: connection.writer.transport.is_closing() or idle(served))


def idle(served: Served) -> bool:
    return not served.server._state.connections


async def test_a_connection_that_was_reset_is_forgotten(served: Served) -> None:
    async with served.connect() as connection:
        await connection.ask(GET)
        raw = connection.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await until(lambda: idle(served))
    assert cycles() == 0


@pytest.mark.parametrize("sent", [b"", b"GET /echo HT", b"GET /echo HTTP/1.1\r\nX: "])
async def test_a_head_that_does_not_come_in_time_ends_the_connection(sent: bytes) -> None:
    async with serving(seconds=0.2) as served, served.connect() as connection:
        await connection.send(sent)
        assert (await connection.answer())[0] == 408
        assert await connection.ended() == b""


async def test_beyond_so_many_connections_others_are_ended_at_once() -> None:
    async with serving(most=2) as served:
        async with served.connect() as first, served.connect() as second:
            assert (await first.ask(GET))[0] == (await second.ask(GET))[0] == 200
            async with served.connect() as third:
                assert await third.ended() == b""
            assert (await first.ask(GET))[0] == 200
        await until(lambda: idle(served))
        async with served.connect() as connection:
            assert (await connection.ask(GET))[0] == 200


async def test_a_server_that_stops_ends_what_it_has_begun_and_begins_nothing(
    served: Served,
) -> None:
    async with served.connect() as busy, served.connect() as quiet:
        await busy.send(WAIT, GET)
        await quiet.ask(GET)
        await until(lambda: served.application.waiting == 1)
        stopping = asyncio.create_task(served.server.stop(PATIENCE))
        assert await quiet.ended() == b""
        served.application.release.set()
        assert await busy.answer() == (200, b"released")
        assert await busy.answer() == (200, b"GET host ")
        assert await busy.ended() == b""
        await stopping


async def test_a_server_that_stops_answers_what_was_sent_to_it_before(served: Served) -> None:
    """Also where it has not looked at it yet, or not taken the connection from the kernel."""
    with ExitStack() as held:

        def sent(request: bytes) -> socket.socket:
            made = socket.create_connection(("127.0.0.1", served.port), PATIENCE)
            made.sendall(request)
            made.setblocking(False)
            return held.enter_context(made)

        half = sent(GET[:20])
        await until(lambda: len(served.server._state.connections) == 1)
        whole = [sent(GET) for _ in range(20)]
        stopping = asyncio.create_task(served.server.stop(PATIENCE))
        await asyncio.sleep(0)
        half.sendall(GET[20:])
        for client in (half, *whole):
            async with asyncio.timeout(PATIENCE):
                got = await asyncio.get_running_loop().sock_recv(client, 1_000)
            assert got.startswith(b"HTTP/1.1 200 ")
    await stopping


async def test_a_server_that_stops_answers_who_is_in_a_handshake_and_nobody_who_is_silent(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("localhost")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.certificate, pair.key)
    async with serving(tls=tls) as served, served.connect() as silent, served.connect() as slow:
        await until(lambda: len(served.server._listener.arriving) == 2)
        stopping = asyncio.create_task(served.server.stop(PATIENCE))
        await until(lambda: served.server._shared.stopping)
        await slow.writer.start_tls(client_context(authority), server_hostname="localhost")
        assert (await slow.ask(GET))[0] == 200
        assert await silent.ended() == b""
        await stopping


async def test_what_a_stopping_server_gives_up_is_no_error(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with served.connect() as connection:
        await connection.send(WAIT)
        await until(lambda: served.application.waiting == 1)
        await served.server.stop(0)
        assert await connection.ended() == b""
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_clients_who_leave_together_are_told_of_in_turns(served: Served) -> None:
    """Else nobody else would have a turn for as long as it takes to end what they have asked for."""
    async with AsyncExitStack() as held:
        for _ in range(50):
            connection = await held.enter_async_context(served.connect())
            await connection.send(WAIT)
        await until(lambda: served.application.waiting == 50)
    before = most_in_a_turn = len(served.server._state.connections)
    most_in_a_turn = 0
    async with asyncio.timeout(PATIENCE):
        while before:
            await asyncio.sleep(0)
            left = len(served.server._state.connections)
            most_in_a_turn, before = max(most_in_a_turn, before - left), left
    assert most_in_a_turn <= module._TOLD_AT_ONCE


def test_nothing_is_written_to_who_has_left_and_is_not_told_of_yet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On the event loop of the server, which fails when it is asked to."""

    async def leave_together() -> None:
        async with serving() as served:
            async with AsyncExitStack() as held:
                for _ in range(50):
                    connection = await held.enter_async_context(served.connect())
                    await connection.send(WAIT)
                await until(lambda: served.application.waiting == 50)
            served.application.release.set()
            await until(lambda: idle(served))

    uvloop.run(leave_together())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
