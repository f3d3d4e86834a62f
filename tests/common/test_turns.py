"""One at a time, the callers by turns."""

from __future__ import annotations

import asyncio

import pytest

from opservice.common.turns import Turns
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
    assert not site.turns._waiting


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
