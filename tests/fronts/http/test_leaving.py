"""Connections: clients who leave, and a server that stops."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
import uvloop

from fronts.http.connections import (
    GET,
    HOST,
    PATIENCE,
    WAIT,
    Served,
    cycles,
    idle,
    living,
    serving,
    until,
)
from opservice.fronts.http import connection as module
from support.certificates import Authority, client_context, server_context


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


async def test_a_request_learns_that_its_client_left_also_when_another_waits_behind_it(
    served: Served,
) -> None:
    async with served.connect() as connection:
        await connection.send(WAIT, GET)
        await until(lambda: served.application.waiting == 1)
    async with asyncio.timeout(PATIENCE):
        await served.application.left.wait()


async def test_a_connection_that_was_reset_is_forgotten(served: Served) -> None:
    async with served.connect() as connection:
        await connection.ask(GET)
        raw = connection.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await until(lambda: idle(served))
    assert cycles() == 0


async def test_clients_who_leave_together_are_told_of_in_turns(served: Served) -> None:
    """Else nobody else would have a turn for as long as it takes to end what they have asked for."""
    async with AsyncExitStack() as held:
        for _ in range(50):
            connection = await held.enter_async_context(served.connect())
            await connection.send(WAIT)
        await until(lambda: served.application.waiting == 50)
    before, most_in_a_turn = len(served.server._state.connections), 0
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
    tls = server_context(authority.issue())
    async with serving(tls=tls) as served, served.connect() as silent, served.connect() as slow:
        await until(lambda: len(served.server._listener.arriving) == 2)
        stopping = asyncio.create_task(served.server.stop(PATIENCE))
        await until(lambda: served.server._shared.stopping)
        await slow.writer.start_tls(client_context(authority), server_hostname="localhost")
        assert (await slow.ask(GET))[0] == 200
        assert await silent.ended() == b""
        await stopping


@pytest.mark.parametrize(
    ("sent", "ends"),
    [
        (GET, False),
        (GET.replace(HOST, HOST + b"Connection: close\r\n"), True),
        (b"no\r\n\r\n", True),
    ],
    ids=["kept", "ended before", "refused before"],
)
async def test_a_server_that_stops_waits_for_no_client_to_end_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes, ends: bool
) -> None:
    """Such as those that keep a connection in a pool, and do not look at it meanwhile."""
    monkeypatch.setattr(module, "_GOODBYE_SECONDS", 0.01)
    authority = Authority(tmp_path)
    async with serving(tls=server_context(authority.issue())) as served:
        with socket.create_connection(("127.0.0.1", served.port), PATIENCE) as plain:
            client = await asyncio.to_thread(
                client_context(authority).wrap_socket, plain, server_hostname="localhost"
            )
            with client:
                await asyncio.to_thread(client.sendall, sent)
                assert (await asyncio.to_thread(client.recv, 1_000)).startswith(b"HTTP/1.1 ")
                (connection,) = served.server._state.connections
                await until(lambda: connection.transport.is_closing() is ends)
                async with asyncio.timeout(PATIENCE / 2):
                    await served.server.stop(2 * PATIENCE)


async def test_what_a_stopping_server_gives_up_is_no_error(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with served.connect() as connection:
        await connection.send(WAIT)
        await until(lambda: served.application.waiting == 1)
        await served.server.stop(0)
        assert await connection.ended() == b""
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
