"""Conversions of JSON: how long others wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from itertools import count

import pytest
from google.protobuf import descriptor_pool

from opservice.fronts.http.conversions import Conversions
from opservice.methods.protojson import ProtoJson

SMALL, MEDIUM, LARGE = 1_000, 8_000, 100_000


def conversions(clock: Callable[[], float]) -> Conversions:
    return Conversions(ProtoJson(descriptor_pool.Default()), clock)


async def turns_of(made: Conversions, size: int, conversions_: int) -> list[int]:
    """In which turn of the event loop each of them is made, which are asked for together."""
    turn = 0

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    asked = [made.run(size, "a", lambda: turn) for _ in range(conversions_)]
    made_in = await asyncio.gather(*asked)
    counting.cancel()
    return made_in


async def test_a_turn_of_the_event_loop_has_one_slow_conversion() -> None:
    ticks = count()
    made_in = await turns_of(conversions(lambda: next(ticks)), MEDIUM, 50)
    assert len(set(made_in)) == 50


@pytest.mark.parametrize("size", [SMALL, MEDIUM])
async def test_quick_conversions_wait_for_nothing(size: int) -> None:
    made_in = await turns_of(conversions(lambda: 0.0), size, 50)
    assert len(set(made_in)) == 1


async def test_large_ones_are_made_one_at_a_time_by_turns_and_not_on_the_event_loop() -> None:
    made, order, at_once = conversions(lambda: 0.0), [], 0

    def convert(caller: str) -> None:
        nonlocal at_once
        assert threading.current_thread() is not threading.main_thread()
        at_once += 1
        assert at_once == 1
        order.append(caller)
        at_once -= 1

    await asyncio.gather(*(made.run(LARGE, caller, partial(convert, caller)) for caller in "aaaab"))
    assert "".join(order) == "aabaa"


async def test_a_large_one_that_was_cancelled_ends_before_the_next_begins() -> None:
    """Else clients who leave, or whose time is over, would have many made at once."""
    made, began, ends, order = conversions(lambda: 0.0), threading.Event(), threading.Event(), []

    def convert() -> None:
        began.set()
        ends.wait()
        order.append("cancelled")

    cancelled = asyncio.create_task(made.run(LARGE, "a", convert))
    try:
        await asyncio.to_thread(began.wait)
        following = asyncio.create_task(made.run(LARGE, "b", partial(order.append, "next")))
        cancelled.cancel()
        await asyncio.wait((following,), timeout=0.05)
    finally:
        ends.set()
    await following
    assert order == ["cancelled", "next"]
    assert cancelled.cancelled()


async def test_what_cannot_be_converted_keeps_nobody_waiting() -> None:
    made = conversions(lambda: 0.0)
    for size in (SMALL, MEDIUM, LARGE):
        with pytest.raises(ZeroDivisionError):
            await made.run(size, "a", lambda: 1 // 0)
        assert await made.run(size, "a", lambda: 1) == 1
