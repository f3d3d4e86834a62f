"""One at a time, or few, the callers by turns."""

from __future__ import annotations

import asyncio

import pytest

from opservice.common import turns as module
from opservice.common.turns import Beginnings, Turns
from opservice.domain.errors import ServerBusy


class Site:
    """Who was let in, in that order; each stays in until `step`."""

    def __init__(self, max_waiting: int = 64) -> None:
        self.turns = Turns(max_waiting)
        self.let_in: list[str] = []
        self._leave = asyncio.Semaphore(0)

    async def call(self, caller: str) -> None:
        async with self.turns.turn(caller):
            self.let_in.append(caller)
            await self._leave.acquire()

    async def wait(self, *callers: str) -> list[asyncio.Task[None]]:
        """Their calls, which have come so far as they can."""
        tasks = [asyncio.create_task(self.call(caller)) for caller in callers]
        await self.settle()
        return tasks

    async def step(self) -> None:
        self._leave.release()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_who_asks_once_does_not_wait_for_all_that_another_asks_for() -> None:
    site = Site()
    calls = await site.wait(*["viewer"] * 8, "victim")

    assert site.let_in == ["viewer"]
    for _ in calls:
        await site.step()

    assert site.let_in[:3] == ["viewer", "viewer", "victim"]
    assert site.let_in[3:] == ["viewer"] * 6


async def test_callers_take_turns() -> None:
    site = Site()
    calls = await site.wait("a", *"aaabbc")
    for _ in calls:
        await site.step()

    assert "".join(site.let_in) == "aabcaba"


@pytest.mark.parametrize("who_first", [0, 1], ids=["in turn", "waiting"])
async def test_who_gives_up_is_passed_over_wherever_they_stand(who_first: int) -> None:
    site = Site()
    *leaving, next_, last = await site.wait("a", "b", "c", "d")

    leaving[who_first].cancel()
    leaving[not who_first].cancel()
    await site.settle()
    assert site.let_in == ["a", "c"]
    next_.cancel()
    last.cancel()
    await site.settle()

    await site.wait("e")
    assert site.let_in[-1] == "e"
    assert not site.turns._waiting._of


async def test_more_than_may_wait_are_refused() -> None:
    site = Site(max_waiting=2)
    await site.wait("a", "b", "c")

    with pytest.raises(ServerBusy):
        await site.call("d")
    await site.step()
    await site.wait("d")
    await site.step()
    await site.step()

    assert site.let_in == ["a", "b", "c", "d"]


async def test_thousands_may_give_up_at_the_moment_in_which_a_turn_ends() -> None:
    site = Site()
    first, *others = await site.wait(*["a"] * 3_000)

    site._leave.release()
    for other in others:
        other.cancel()
    await site.settle()

    assert first.done()
    await site.wait("b")
    assert site.let_in == ["a", "b"]


async def begin(turn_seconds: float) -> list[str]:
    """Who begins in each turn of the event loop, when each takes so long: many of `a`, and one of `b`."""
    now = 0.0
    turns = [""]
    beginnings = Beginnings(lambda: now)

    async def ask(caller: str) -> None:
        await beginnings.turn(caller)
        turns[-1] += caller

    calls = [asyncio.create_task(ask(caller)) for caller in "a" * 60 + "b"]
    while not all(call.done() for call in calls):
        await asyncio.sleep(0)
        now += turn_seconds
        turns.append("")
    assert beginnings._waiting.number == 0
    return [turn for turn in turns if turn]


async def test_one_begins_in_each_short_turn_of_the_event_loop() -> None:
    assert await begin(0) == ["a", "a", "b"] + ["a"] * 58


async def test_more_begin_in_long_turns_so_that_others_do_not_keep_them_waiting() -> None:
    assert (await begin(3 * module._LONG_SECONDS))[:3] == ["a", "abaa", "aaaa"]


async def test_few_begin_in_a_turn_however_long_it_is() -> None:
    assert max(map(len, await begin(1_000))) == module._MOST_AT_ONCE


async def test_who_gives_up_before_they_begin_is_passed_over() -> None:
    begun: list[str] = []
    beginnings = Beginnings(lambda: 0.0)

    async def ask(caller: str) -> None:
        await beginnings.turn(caller)
        begun.append(caller)

    calls = [asyncio.create_task(ask(caller)) for caller in "abcd"]
    await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.sleep(0)  # it is the turn of the third
    calls[2].cancel()
    await asyncio.wait(calls)
    await ask("e")

    assert begun == ["a", "d", "e"]
    assert not beginnings._waiting._of
