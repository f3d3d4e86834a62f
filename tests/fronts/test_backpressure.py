"""Connections that do not read their answers: who is kept waiting, and who is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from opservice.domain.errors import ServerBusy
from opservice.fronts.backpressure import UnreadResponses

MOST = 8 << 20
OF_CONNECTION = MOST // 8
MUCH = bytes(OF_CONNECTION // 2)
SMALL = bytes(1000)


def answered(unread: UnreadResponses, peer: str, answer: bytes = MUCH) -> Callable[[], object]:
    """A response that has not been read, and what is called once it is."""
    return unread.add(peer, len(answer)) or (lambda: None)


async def order_of_turns(unread: UnreadResponses, *peers: str) -> list[str]:
    """In which order calls begin that come at the same time."""
    begun: list[str] = []

    async def begin(peer: str) -> None:
        await unread.wait_for_turn(peer)
        begun.append(peer)

    await asyncio.gather(*map(begin, peers))
    return begun


async def test_calls_of_a_connection_that_does_not_read_let_others_go_first() -> None:
    unread = UnreadResponses(MOST)
    answered(unread, "deaf")

    assert await order_of_turns(unread, "deaf", "deaf", "good") == ["good", "deaf", "deaf"]


async def test_calls_that_were_given_up_keep_nobody_waiting() -> None:
    unread = UnreadResponses(MOST)
    answered(unread, "deaf")
    given_up = [asyncio.create_task(order_of_turns(unread, "deaf")) for _ in range(1000)]
    await asyncio.sleep(0.01)
    for each in given_up:
        each.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)

    turn = asyncio.create_task(order_of_turns(unread, "deaf"))
    much_later = asyncio.create_task(asyncio.sleep(5))
    done, _ = await asyncio.wait([turn, much_later], return_when=asyncio.FIRST_COMPLETED)
    much_later.cancel()

    assert done == {turn}


@pytest.mark.parametrize("answer", [MUCH, SMALL])
async def test_who_has_read_its_answers_waits_no_more(answer: bytes) -> None:
    unread = UnreadResponses(MOST)
    answered(unread, "deaf", answer)()

    assert await order_of_turns(unread, "deaf", "good") == ["deaf", "good"]


async def test_beyond_its_share_a_connection_is_refused_and_others_are_not() -> None:
    unread = UnreadResponses(MOST)
    read, _ = answered(unread, "deaf"), answered(unread, "deaf")

    with pytest.raises(ServerBusy):
        answered(unread, "deaf")
    answered(unread, "deaf", SMALL)
    answered(unread, "good")()
    read()
    answered(unread, "deaf")


async def test_all_are_refused_beyond_what_all_may_have() -> None:
    unread = UnreadResponses(MOST)
    for number in range(16):
        answered(unread, f"deaf {number}")

    with pytest.raises(ServerBusy):
        answered(unread, "good")


async def test_an_answer_of_a_stream_counts_while_it_is_written() -> None:
    unread = UnreadResponses(MOST)
    writing = unread.written("deaf", len(MUCH))
    with suppress(ZeroDivisionError), writing:
        assert await order_of_turns(unread, "deaf", "good") == ["good", "deaf"]
        raise ZeroDivisionError

    assert await order_of_turns(unread, "deaf", "good") == ["deaf", "good"]
