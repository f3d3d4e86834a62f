"""A run that hangs keeps nobody waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from opservice.domain.errors import StoreUnavailable
from opservice.store import batching
from opservice.store.batching import Batcher
from support.metrics import counted

PATIENCE = 30.0


@pytest.fixture
def released() -> threading.Event:
    return threading.Event()


@pytest.fixture
def batcher(released: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Batcher[int, int]:
    """Hangs on 0 until released."""
    monkeypatch.setattr(batching, "HANG_SECONDS", 0.1)

    def run(items: Sequence[int]) -> Sequence[int]:
        if 0 in items:
            assert released.wait(PATIENCE)
        return items

    return Batcher("test", run)


async def test_who_waits_for_a_run_that_hangs_is_told_that_the_store_is_unavailable(
    batcher: Batcher[int, int], released: threading.Event
) -> None:
    with pytest.raises(StoreUnavailable):
        await batcher.submit(0)
    released.set()
    await batcher.close()


async def test_who_waits_for_the_batch_after_it_is_told_as_well(
    batcher: Batcher[int, int], released: threading.Event
) -> None:
    outcomes = await asyncio.gather(batcher.submit(0), batcher.submit(1), return_exceptions=True)
    later = await asyncio.gather(batcher.submit(2), return_exceptions=True)
    assert [type(outcome) for outcome in (*outcomes, *later)] == [StoreUnavailable] * 3
    released.set()
    await batcher.close()


async def test_once_it_hangs_no_longer_callers_are_served_again(
    batcher: Batcher[int, int], released: threading.Event
) -> None:
    with pytest.raises(StoreUnavailable):
        await batcher.submit(0)
    released.set()

    async def served() -> int:
        while True:
            try:
                return await batcher.submit(3)
            except StoreUnavailable:
                await asyncio.sleep(0.01)

    assert await asyncio.wait_for(served(), PATIENCE) == 3
    await batcher.close()


async def test_a_run_that_has_ended_is_not_taken_for_one_that_hangs_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "HANG_SECONDS", 0.05)
    hung: list[float] = []
    batcher: Batcher[int, int] = Batcher("test", lambda items: items, on_hang=hung.append)
    await batcher.submit(1)

    await asyncio.sleep(0.2)

    assert hung == []
    await batcher.close()


async def test_who_is_told_that_it_hangs_is_counted_once(
    batcher: Batcher[int, int], released: threading.Event
) -> None:
    def told() -> float:
        labels = {"batch": "test", "error": "StoreUnavailable"}
        return counted("opservice_batch_errors_total", **labels)

    before = told()
    await asyncio.gather(batcher.submit(0), batcher.submit(1), return_exceptions=True)
    await asyncio.gather(batcher.submit(2), return_exceptions=True)
    assert told() == before + 3
    released.set()
    await batcher.close()
    assert told() == before + 3
