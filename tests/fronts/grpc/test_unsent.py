"""Connections that do not read their answers: who is kept waiting, and who is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import pytest

from opservice.domain.errors import ServerBusy
from opservice.fronts.grpc.unsent import Context, Unsent

MOST = 8 << 20
OF_CONNECTION = MOST // 8
MUCH = bytes(OF_CONNECTION // 2)
SMALL = bytes(1000)


class Call:
    """What Unsent needs of gRPC's context."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._callbacks: list[Callable[[object], None]] = []

    def peer(self) -> str:
        return self._peer

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


def answered(unsent: Unsent, peer: str, answer: bytes = MUCH) -> Call:
    """A call whose answer has not been read."""
    call = Call(peer)
    unsent.until_done(answer, context_of(call))
    return call


def context_of(call: Call) -> Context:
    return cast("Context", call)


async def order_of_turns(unsent: Unsent, *peers: str) -> list[str]:
    """In which order calls begin that come at the same time."""
    begun: list[str] = []

    async def begin(peer: str) -> None:
        await unsent.turn(context_of(Call(peer)))
        begun.append(peer)

    await asyncio.gather(*map(begin, peers))
    return begun


async def test_calls_of_a_connection_that_does_not_read_let_others_go_first() -> None:
    unsent = Unsent(MOST)
    answered(unsent, "deaf")

    assert await order_of_turns(unsent, "deaf", "deaf", "good") == ["good", "deaf", "deaf"]


async def test_calls_that_were_given_up_keep_nobody_waiting() -> None:
    unsent = Unsent(MOST)
    answered(unsent, "deaf")
    given_up = [asyncio.create_task(order_of_turns(unsent, "deaf")) for _ in range(1000)]
    await asyncio.sleep(0.01)
    for each in given_up:
        each.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)

    turn = asyncio.create_task(order_of_turns(unsent, "deaf"))
    much_later = asyncio.create_task(asyncio.sleep(5))
    done, _ = await asyncio.wait([turn, much_later], return_when=asyncio.FIRST_COMPLETED)
    much_later.cancel()

    assert done == {turn}


@pytest.mark.parametrize("answer", [MUCH, SMALL])
async def test_who_has_read_its_answers_waits_no_more(answer: bytes) -> None:
    unsent = Unsent(MOST)
    answered(unsent, "deaf", answer).end()

    assert await order_of_turns(unsent, "deaf", "good") == ["deaf", "good"]


async def test_beyond_its_share_a_connection_is_refused_and_others_are_not() -> None:
    unsent = Unsent(MOST)
    unread = [answered(unsent, "deaf"), answered(unsent, "deaf")]

    with pytest.raises(ServerBusy):
        answered(unsent, "deaf")
    answered(unsent, "deaf", SMALL)
    answered(unsent, "good").end()
    unread[0].end()
    answered(unsent, "deaf")


async def test_all_are_refused_beyond_what_all_may_have() -> None:
    unsent = Unsent(MOST)
    for number in range(16):
        answered(unsent, f"deaf {number}")

    with pytest.raises(ServerBusy):
        answered(unsent, "good")


async def test_an_answer_of_a_stream_counts_while_it_is_written() -> None:
    unsent = Unsent(MOST)
    writing = unsent.while_written(MUCH, context_of(Call("deaf")))
    with suppress(ZeroDivisionError), writing:
        assert await order_of_turns(unsent, "deaf", "good") == ["good", "deaf"]
        raise ZeroDivisionError

    assert await order_of_turns(unsent, "deaf", "good") == ["deaf", "good"]
