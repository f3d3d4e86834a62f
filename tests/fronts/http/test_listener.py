"""Taking connections: how many, and what else may come of it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from opservice.fronts.http import listener as module
from opservice.fronts.http.listener import Listener
from support.certificates import Authority, client_context, server_context
from support.logs import capture_logs

PATIENCE = 30.0
FLOOD = 200


class Greeting(asyncio.Protocol):
    """Says hello on each connection, and knows those that last."""

    transport: asyncio.Transport

    def __init__(self, lasting: set[Greeting]) -> None:
        self.lasting = lasting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.lasting.add(self)
        transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lasting.discard(self)


class ShortOfFiles(socket.socket):
    """Cannot take a connection at first."""

    refusals = 1

    def accept(self) -> tuple[socket.socket, object]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


@asynccontextmanager
async def listening(
    *,
    most: int = 1_000,
    tls: ssl.SSLContext | None = None,
    kind: type[socket.socket] = socket.socket,
) -> AsyncIterator[tuple[Listener, socket.socket]]:
    lasting: set[Greeting] = set()
    listener = Listener(lambda: Greeting(lasting), lasting, most, PATIENCE)
    listener.tls = tls
    with closing(kind(socket.AF_INET, socket.SOCK_STREAM)) as bound:
        bound.bind(("127.0.0.1", 0))
        listener.start([bound])
        try:
            yield listener, bound
        finally:
            listener.stop(0)
            listener.abort()
            await asyncio.sleep(0)
            await end(lasting)


async def end(lasting: set[Greeting]) -> None:
    for each in list(lasting):
        each.transport.abort()
    while lasting:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0)


async def said(client: socket.socket) -> bytes:
    """What the server says at first; nothing when it ends the connection."""
    async with asyncio.timeout(PATIENCE):
        return await asyncio.get_running_loop().sock_recv(client, 100)


def connected(held: ExitStack, bound: socket.socket) -> socket.socket:
    """Once it returns, the kernel has the connection, and the server need not know of it."""
    made = held.enter_context(socket.create_connection(bound.getsockname(), PATIENCE))
    made.setblocking(False)
    return made


async def test_every_connection_of_a_flood_is_taken() -> None:
    async with listening() as (_, bound):
        with ExitStack() as held:
            for client in [connected(held, bound) for _ in range(FLOOD)]:
                assert await said(client) == b"hello"


async def test_others_get_their_turn_while_a_flood_is_taken() -> None:
    """Turns of the event loop are counted, not time."""
    async with listening() as (listener, bound):
        with ExitStack() as held:
            flood = [connected(held, bound) for _ in range(FLOOD)]
            most_in_a_turn = before = 0
            while before < FLOOD:
                await asyncio.sleep(0)
                taken = len(listener._connections) + len(listener.arriving)
                most_in_a_turn, before = max(most_in_a_turn, taken - before), taken
            # We may be before it in one turn, and after it in the next.
            assert 0 < most_in_a_turn <= 2 * module._MOST_AT_ONCE
            assert await said(flood[-1]) == b"hello"


async def test_as_many_are_taken_as_there_is_room_for_however_quickly_they_come() -> None:
    async with listening(most=FLOOD) as (_, bound):
        with ExitStack() as held:
            for client in [connected(held, bound) for _ in range(FLOOD)]:
                assert await said(client) == b"hello"
            assert await said(connected(held, bound)) == b""


async def test_more_are_taken_in_each_turn_while_turns_are_short() -> None:
    seconds = 0.0
    lasting: set[Greeting] = set()
    listener = Listener(lambda: Greeting(lasting), lasting, 1_000, PATIENCE, lambda: seconds)
    with ExitStack() as held, closing(socket.create_server(("127.0.0.1", 0))) as bound:
        bound.setblocking(False)
        for _ in range(100):
            connected(held, bound)
        taken = []
        for turn in [0.001] * 5 + [0.5] * 3 + [0.001] * 2:
            before = len(listener.arriving)
            seconds += turn
            listener._take_some(bound)
            taken.append(len(listener.arriving) - before)
        await asyncio.wait(listener.arriving)
        await end(lasting)
    assert taken == [1, 2, 3, 4, 5, 2, 1, 1, 2, 3]


async def test_a_connection_without_a_handshake_takes_up_room(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with listening(most=2, tls=server_context(authority.issue())) as (_, bound):
        with ExitStack() as held:
            silent = [connected(held, bound) for _ in range(2)]
            assert await said(connected(held, bound)) == b""
            for each in silent:
                each.close()
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        reader, writer = await asyncio.open_connection(
                            *bound.getsockname(),
                            ssl=client_context(authority),
                            server_hostname="localhost",
                        )
                    except OSError:
                        continue  # it has not seen yet that those have left
                    break
            assert await reader.readexactly(5) == b"hello"
            writer.transport.abort()


async def test_connections_wait_while_there_are_no_files_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    async with listening(kind=ShortOfFiles) as (_, bound):
        with capture_logs() as lines, ExitStack() as held:
            assert await said(connected(held, bound)) == b"hello"
    assert [line["reason"] for line in lines] == [os.strerror(errno.EMFILE)]


async def test_what_the_kernel_has_is_taken_when_it_stops_and_nothing_after() -> None:
    async with listening() as (listener, bound):
        with ExitStack() as held:
            clients = [connected(held, bound) for _ in range(FLOOD)]
            here = bound.getsockname()
            listener.stop(PATIENCE)
            for client in clients:
                assert await said(client) == b"hello"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(here, PATIENCE)
