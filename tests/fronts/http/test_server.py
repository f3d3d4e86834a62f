"""Connections: what clients may do to one, and what of it ends it."""

from __future__ import annotations

import asyncio

import pytest

from fronts.http.connections import GET, HOST, PATIENCE, WAIT, Served, cycles, idle, serving, until
from opservice.fronts.http import connection as module
from opservice.fronts.http.connection import MAX_HEAD_BYTES


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
    "CONNECT with a path": b"CONNECT /echo HTTP/1.1\r\nHost: a\r\n\r\n",
    "two codings": b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "HTTP/0.9": b"GET /echo\r\n\r\n",
    "HTTP/2 by its name": b"GET /echo HTTP/2.0\r\nHost: a\r\n\r\n",
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


async def test_spaces_after_a_value_are_none_of_it(served: Served) -> None:
    """RFC 9112, section 5.1."""
    sent = b"POST /echo HTTP/1.1\r\n%sTransfer-Encoding: chunked \r\n\r\n1\r\nx\r\n0\r\n\r\n" % HOST
    async with served.connect() as connection:
        assert await connection.ask(sent) == (200, b"POST host,transfer-encoding x")


async def test_each_answer_has_the_time_at_which_it_is_given(served: Served) -> None:
    """RFC 9110, section 6.6.1. A wait may last a minute."""

    async def date(request: bytes) -> bytes:
        async with served.connect() as connection:
            await connection.send(request)
            return (await connection.ended()).partition(b"\r\ndate: ")[2].partition(b"\r\n")[0]

    end = b"HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n"
    clock = asyncio.create_task(served.server.keep_time())
    waited = asyncio.create_task(date(b"GET /wait " + end))
    await until(lambda: served.application.waiting == 1)
    began = later = await date(b"GET /echo " + end)
    async with asyncio.timeout(PATIENCE):
        while later == began:
            later = await date(b"no HTTP\r\n\r\n")
    served.application.release.set()
    assert later
    assert await waited not in {b"", began}
    clock.cancel()


async def test_who_knows_no_continue_is_sent_none(served: Served) -> None:
    """RFC 9110, section 10.1.1."""
    sent = post(b"x", b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    async with served.connect() as connection:
        assert await connection.ask(sent) == (200, b"POST host,expect,content-length x")


async def test_a_line_break_after_a_request_begins_no_other_one() -> None:
    """RFC 9112, section 2.2. Some clients send one behind a body."""
    async with serving(seconds=0.2) as served, served.connect() as connection:
        await connection.send(WAIT, b"\r\n")
        await until(lambda: served.application.waiting == 1)
        async with served.connect() as silent:
            assert (await silent.answer())[0] == 408
        served.application.release.set()
        assert await connection.answer() == (200, b"released")
        assert (await connection.ask(GET))[0] == 200


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
