"""Messages between the supervisor and its workers arrive whole, in order, and hold nobody up."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from opservice.runtime.connection import MessageConnection
from support.server import PATIENCE

Pair = tuple[MessageConnection, MessageConnection]

LONG = b"x" * (5 << 20)
"""Far more than the kernel keeps for a socket."""


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    one, other = await MessageConnection.over(ours), await MessageConnection.over(theirs)
    yield one, other
    one.close()
    other.close()


async def test_messages_arrive_whole_and_in_order(
    pair: Pair,
) -> None:
    one, other = pair
    sent = [b"", b"short", LONG, b"x" * (16 << 10), b"last"]
    for message in sent:
        one.post(message)

    assert [await other.receive() for _ in sent] == sent


async def test_a_message_that_comes_in_parts_is_no_end() -> None:
    ours, theirs = socket.socketpair()
    whole, there = socket.socketpair()
    link, source = await MessageConnection.over(theirs), await MessageConnection.over(whole)
    source.post("message")
    await source.send("message")
    receiving = asyncio.create_task(link.receive())
    with ours, there:
        for byte in there.recv(1 << 10):
            ours.send(bytes([byte]))
            await asyncio.sleep(0)

        assert await receiving == "message"
        assert await link.receive() == "message"
    link.close()
    source.close()


async def test_sending_waits_for_a_slow_reader_while_the_loop_goes_on(
    pair: Pair,
) -> None:
    one, other = pair
    sending = asyncio.create_task(one.send(LONG))
    await asyncio.sleep(0.05)
    assert not sending.done()
    assert not one.idle

    assert await other.receive() == LONG
    await asyncio.wait_for(sending, PATIENCE)
    assert one.idle


async def test_the_end_comes_after_all_that_was_sent(
    pair: Pair,
) -> None:
    one, other = pair
    one.post(LONG)
    one.end()
    other.post("the other way")

    assert await other.receive() == LONG
    with pytest.raises(EOFError):
        await other.receive()
    assert await one.receive() == "the other way"


async def test_nothing_can_be_sent_after_the_end(
    pair: Pair,
) -> None:
    one, other = pair
    one.end()
    await one.send("late")

    with pytest.raises(EOFError):
        await other.receive()


async def test_half_a_message_is_never_taken(
    pair: Pair,
) -> None:
    one, other = pair
    one.post(LONG)
    one.close()

    with pytest.raises(EOFError):
        await other.receive()


async def test_what_nobody_is_there_to_read_is_lost_without_an_error(
    pair: Pair,
) -> None:
    one, other = pair
    other.close()
    with pytest.raises(EOFError):
        await one.receive()

    for _ in range(10):
        await asyncio.wait_for(one.send(os.urandom(1 << 16)), PATIENCE)
