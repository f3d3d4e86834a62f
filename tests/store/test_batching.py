"""Batches form while one runs, and what goes wrong in one is told to whom it concerns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from opservice.common import tracing
from opservice.domain.errors import StoreUnavailable
from opservice.store.batching import MAX_BATCH, Batcher

Result = TypeVar("Result")

PATIENCE = 30.0
"""Seconds after which a test gives up on what should long have happened."""


class Gate:
    """Answers each item with `answer(item)`, but only once it is open; keeps the batches it was given."""

    def __init__(self, answer: Callable[[int], int | Exception] = lambda item: item * 10) -> None:
        self.batches: list[list[int]] = []
        self._answer = answer
        self._entered = threading.Event()
        self._opened = threading.Event()

    def run(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self._entered.set()
        assert self._opened.wait(PATIENCE)
        return [self._answer(item) for item in items]

    async def entered(self) -> None:
        """Returns once a batch is running."""
        assert await asyncio.to_thread(self._entered.wait, PATIENCE)

    def open(self) -> None:
        self._opened.set()


async def soon(awaited: Awaitable[Result]) -> Result:
    return await asyncio.wait_for(awaited, PATIENCE)


async def submit_all(batcher: Batcher[int, int], items: Sequence[int]) -> list[asyncio.Task[int]]:
    """Submits them now; returns their callers, who wait."""
    tasks = [asyncio.create_task(batcher.submit(item)) for item in items]
    await asyncio.sleep(0)  # lets each run until it waits
    return tasks


async def test_items_that_arrive_while_a_batch_runs_form_the_next() -> None:
    gate = Gate()
    batcher = Batcher("test", gate.run)
    first = await submit_all(batcher, [1])
    await gate.entered()

    second = await submit_all(batcher, [2, 3, 4])
    gate.open()

    assert await soon(asyncio.gather(*first, *second)) == [10, 20, 30, 40]
    assert gate.batches == [[1], [2, 3, 4]]
    await batcher.close()


async def test_items_that_arrive_together_share_a_batch() -> None:
    gate = Gate()
    gate.open()
    batcher = Batcher("test", gate.run)

    await soon(asyncio.gather(*await submit_all(batcher, [1, 2, 3])))

    assert gate.batches == [[1, 2, 3]]
    await batcher.close()


async def test_a_batch_has_a_largest_size() -> None:
    gate = Gate()
    gate.open()
    batcher = Batcher("test", gate.run)
    items = list(range(2 * MAX_BATCH + 1))

    results = await soon(asyncio.gather(*await submit_all(batcher, items)))

    assert results == [item * 10 for item in items]
    assert [len(batch) for batch in gate.batches] == [MAX_BATCH, MAX_BATCH, 1]
    await batcher.close()


async def test_a_batcher_that_came_to_rest_runs_again() -> None:
    gate = Gate()
    gate.open()
    batcher = Batcher("test", gate.run)

    assert await soon(batcher.submit(1)) == 10
    assert await soon(batcher.submit(2)) == 20
    await batcher.close()


async def test_a_result_that_is_an_exception_is_raised_in_its_caller_alone() -> None:
    gate = Gate(lambda item: KeyError(item) if item == 2 else item)
    gate.open()
    batcher = Batcher("test", gate.run)
    one, two, three = await submit_all(batcher, [1, 2, 3])

    with pytest.raises(KeyError):
        await soon(two)

    assert [await soon(one), await soon(three)] == [1, 3]
    await batcher.close()


async def test_what_the_run_raises_is_raised_in_every_caller_of_its_batch() -> None:
    def fail(items: Sequence[int]) -> Sequence[int]:
        raise StoreUnavailable

    batcher: Batcher[int, int] = Batcher("test", fail)

    results = await soon(asyncio.gather(*await submit_all(batcher, [1, 2]), return_exceptions=True))

    assert [type(result) for result in results] == [StoreUnavailable] * 2
    await batcher.close()


async def test_a_batch_that_fails_does_not_fail_the_next() -> None:
    failures = iter([StoreUnavailable()])

    def fail_once(items: Sequence[int]) -> Sequence[int]:
        for failure in failures:
            raise failure
        return items

    batcher: Batcher[int, int] = Batcher("test", fail_once)
    with pytest.raises(StoreUnavailable):
        await soon(batcher.submit(1))

    assert await soon(batcher.submit(2)) == 2
    await batcher.close()


async def test_a_caller_that_gives_up_does_not_stop_its_batch() -> None:
    gate = Gate()
    batcher = Batcher("test", gate.run)
    impatient, patient = await submit_all(batcher, [1, 2])
    await gate.entered()

    impatient.cancel()
    with suppress(asyncio.CancelledError):
        await impatient
    gate.open()

    assert await soon(patient) == 20
    await batcher.close()


async def test_what_nobody_waits_for_any_more_is_not_run() -> None:
    gate = Gate()
    batcher = Batcher("test", gate.run)
    (first,) = await submit_all(batcher, [1])
    await gate.entered()
    impatient, patient = await submit_all(batcher, [2, 3])

    impatient.cancel()
    with suppress(asyncio.CancelledError):
        await impatient
    gate.open()
    await soon(asyncio.gather(first, patient))

    assert gate.batches == [[1], [3]]
    await batcher.close()


async def test_close_waits_for_what_was_submitted() -> None:
    gate = Gate()
    batcher = Batcher("test", gate.run)
    first = await submit_all(batcher, [1])
    await gate.entered()
    second = await submit_all(batcher, [2])

    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    closed_too_early = closing.done()
    gate.open()
    await soon(closing)

    assert not closed_too_early
    assert [task.result() for task in (*first, *second)] == [10, 20]


async def test_a_batch_is_linked_to_its_own_callers_also_when_others_have_left(
    spans: InMemorySpanExporter,
) -> None:
    gate = Gate()
    batcher = Batcher("store-test", gate.run)

    async def call(item: int) -> None:
        traces = tracing.active()
        assert traces is not None
        with traces.call(f"call {item}", ()):
            await batcher.submit(item)

    first = asyncio.create_task(call(1))
    await gate.entered()
    leaving, second = asyncio.create_task(call(2)), asyncio.create_task(call(3))
    await asyncio.sleep(0)
    leaving.cancel()
    untraced = asyncio.create_task(batcher.submit(4))
    await asyncio.sleep(0)
    gate.open()
    await soon(asyncio.gather(first, second, untraced))
    await soon(call(5))
    await batcher.close()

    ended = spans.get_finished_spans()
    names = {span.context.span_id: span.name for span in ended}
    batches = [span for span in ended if span.name == "store.test"]
    assert [[names[link.context.span_id] for link in batch.links] for batch in batches] == [
        ["call 1"],
        ["call 3"],
        ["call 5"],
    ]


async def test_what_comes_after_a_batch_is_for_no_call(spans: InMemorySpanExporter) -> None:
    seen: list[object] = []
    batcher: Batcher[int, int] = Batcher(
        "store-test", lambda items: items, after=lambda *_: seen.append(tracing.current())
    )
    traces = tracing.active()
    assert traces is not None
    with traces.call("call", ()):
        await soon(batcher.submit(1))
    await batcher.close()
    assert seen == [None]
    assert len(spans.get_finished_spans()) == 2
