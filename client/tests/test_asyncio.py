"""What only the asyncio producer has to see to: tasks that are cancelled, and by whom."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from datetime import timedelta

import pytest
from google.rpc.code_pb2 import Code

from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client import CancelPolicy
from opservice_client.aio import Producer, Work
from support.server import ServerProcess

from .conftest import ended

COOPERATIVE = CancelPolicy.COOPERATIVE
counts_cancels = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="before 3.11 nobody knows who cancelled a task"
)


@pytest.fixture
async def producer(server: ServerProcess) -> AsyncIterator[Producer]:
    async with Producer(server.address, cancel_grace=timedelta(seconds=0.3)) as producer:
        yield producer


async def end_of(server: ServerProcess, work: Work) -> Operation:
    return await asyncio.to_thread(ended, server, work.id)


async def cancel(server: ServerProcess, work: Work) -> None:
    await asyncio.to_thread(server.client.cancel, work.id)


async def test_no_work_is_begun_once_its_producer_is_closed(producer: Producer) -> None:
    entered, begun = await producer.start(), await producer.start()
    ran: list[Work] = []

    async def body(work: Work) -> None:
        ran.append(work)

    await producer.close()
    with pytest.raises(RuntimeError, match="the producer is closed"):
        async with entered:
            ran.append(entered)
    begun.run(body)
    await asyncio.sleep(0.1)

    assert begun.cancelled.is_set()
    assert not ran


Body = Callable[[Work], Awaitable[object]]


class Told:
    """Work that waits, and says what it was told."""

    def __init__(self) -> None:
        self.began, self.cancelled, self.cleaned_up = (asyncio.Event() for _ in range(3))

    async def __call__(self, work: Work) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await asyncio.sleep(0.05)
            self.cleaned_up.set()
            raise


@pytest.mark.parametrize("policy", [CancelPolicy.IMMEDIATE, COOPERATIVE])
async def test_a_cancel_of_the_operation_cancels_the_task_once_and_lets_it_clean_up(
    producer: Producer, server: ServerProcess, policy: CancelPolicy.ValueType
) -> None:
    told = Told()
    work = await producer.start(cancel_policy=policy)
    work.run(told)
    await told.began.wait()
    await cancel(server, work)

    await told.cleaned_up.wait()
    assert (await end_of(server, work)).error.code == Code.CANCELLED


async def test_a_cancel_interrupts_a_block_and_what_follows_it_goes_on(
    producer: Producer, server: ServerProcess
) -> None:
    work = await producer.start(cancel_policy=COOPERATIVE)
    interrupted = False
    async with work:
        try:
            await cancel(server, work)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            interrupted = True
            raise

    assert interrupted
    await asyncio.sleep(0)  # nothing is left of the cancellation
    assert (await end_of(server, work)).error.code == Code.CANCELLED


@counts_cancels
async def test_a_cancel_from_outside_passes_through_a_block_that_is_interrupted_too(
    producer: Producer, server: ServerProcess
) -> None:
    async def handle() -> None:
        async with work:
            handling.set()
            await asyncio.Event().wait()

    def cancel_too() -> None:
        task.cancel()

    handling = asyncio.Event()
    work = await producer.start(cancel_policy=COOPERATIVE)
    task = asyncio.create_task(handle())
    await handling.wait()
    work.on_cancelled(cancel_too)
    await cancel(server, work)

    await asyncio.wait([task])
    assert task.cancelled()


async def test_work_that_polls_is_not_interrupted(
    producer: Producer, server: ServerProcess
) -> None:
    async def poll(work: Work) -> str:
        await work.cancelled.wait()
        await asyncio.sleep(0.05)
        return "it may still succeed"

    work = await producer.start(cancel_policy=COOPERATIVE, interrupt=False)
    work.run(poll)
    await cancel(server, work)

    assert (await end_of(server, work)).HasField("response")


async def test_work_that_swallows_its_cancellation_is_aborted_and_not_renewed_any_more(
    producer: Producer, server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async def swallow(work: Work) -> None:
        while not stop.is_set():
            with suppress(asyncio.CancelledError):
                await stop.wait()

    stop = asyncio.Event()
    work = await producer.start(cancel_policy=COOPERATIVE)
    work.run(swallow)
    await cancel(server, work)

    assert (await end_of(server, work)).error.code == Code.ABORTED
    assert "did not stop" in caplog.text
    assert work._ending is not None
    await work._ending
    assert work._renewing is not None
    assert work._renewing.done()
    stop.set()


async def test_closing_does_not_wait_for_ever_for_work_that_swallows_its_cancellation(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def swallow(work: Work) -> None:
        running.set()
        while not stop.is_set():
            with suppress(asyncio.CancelledError):
                await stop.wait()

    monkeypatch.setattr("opservice_client.work._CLEANUP_SECONDS", 0.1)
    running, stop = asyncio.Event(), asyncio.Event()
    async with Producer(server.address) as producer:
        work = await producer.start()
        work.run(swallow)
        await running.wait()

    assert (await end_of(server, work)).error.code == Code.ABORTED
    stop.set()


async def test_a_callback_that_raises_is_logged_and_harms_nobody(
    producer: Producer, server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("of the callback")

    called: list[bool] = []
    told = Told()
    work = await producer.start(cancel_policy=COOPERATIVE)
    work.on_cancelled(fail)
    work.on_cancelled(lambda: called.append(True))
    work.run(told)
    await cancel(server, work)

    await told.cleaned_up.wait()
    assert called == [True]
    assert (await end_of(server, work)).error.code == Code.CANCELLED
    assert [each.exc_info is not None for each in caplog.records if "callback" in each.message]


@counts_cancels
@pytest.mark.parametrize("raised", [asyncio.CancelledError, CancelledError])
async def test_a_cancelled_error_from_inside_the_work_is_its_failure(
    producer: Producer,
    server: ServerProcess,
    raised: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body(work: Work) -> None:
        raise raised

    work = await producer.start()
    work.run(body)

    assert (await end_of(server, work)).error.code == Code.INTERNAL
    assert any(each.levelno == logging.ERROR for each in caplog.records)


async def test_work_is_run_only_once(producer: Producer) -> None:
    work = await producer.start()
    work.run(Told())

    with pytest.raises(RuntimeError, match="only once"):
        work.run(Told())
    with pytest.raises(RuntimeError, match="only once"):
        async with work:
            pass


async def test_a_coroutine_that_is_thrown_away_ends_its_operation(
    producer: Producer, server: ServerProcess
) -> None:
    async def handle() -> None:
        async with work:
            await asyncio.Event().wait()

    work = await producer.start()
    coroutine = handle()
    coroutine.send(None)
    coroutine.close()
    del coroutine
    gc.collect()

    assert (await end_of(server, work)).error.code == Code.ABORTED


def test_one_producer_serves_one_event_loop_after_another(server: ServerProcess) -> None:
    producer = Producer(server.address)  # as a module would

    async def produce() -> str:
        work = await producer.start()
        async with work:
            work.complete("done")
        return work.id

    for _ in range(2):
        assert ended(server, asyncio.run(produce())).HasField("response")


async def test_work_that_closes_its_own_producer_raises_and_the_producer_goes_on(
    producer: Producer, server: ServerProcess
) -> None:
    async def body(work: Work) -> str:
        with pytest.raises(RuntimeError, match=f"{work.id} closes its own producer"):
            await producer.close()
        return "done"

    work = await producer.start()
    work.run(body)

    assert (await end_of(server, work)).HasField("response")
    await producer.start()


def test_an_interrupt_while_a_block_is_entered_leaves_no_operation_held(
    server: ServerProcess,
) -> None:
    producer = Producer(server.address)

    async def start() -> Work:
        work = await producer.start()
        begin = work._begin

        def interrupt() -> None:
            begin()
            raise KeyboardInterrupt

        work._begin = interrupt  # type: ignore[method-assign] # as a signal would
        return work

    async def handle(work: Work) -> None:
        async with work:
            raise AssertionError("entered")

    with asyncio.Runner() as runner:
        work = runner.run(start())
        with pytest.raises(KeyboardInterrupt):
            runner.run(handle(work))
        # The loop goes on, as one that is the application's own does.
        assert runner.run(end_of(server, work)).error.code == Code.ABORTED
        runner.run(producer.close())


@pytest.mark.slow
@counts_cancels
def test_an_interrupt_ends_the_operations_of_a_program(server: ServerProcess) -> None:
    program = """
        import asyncio, signal, sys
        from opservice_client.aio import Producer

        async def main():
            async with Producer(sys.argv[1]) as producer:
                works = [await producer.start() for _ in range(3)]
                print(*(work.id for work in works), flush=True)
                works[0].run(lambda work: asyncio.sleep(60))
                signal.raise_signal(signal.SIGINT)  # cancels this task, at its next await
                async with works[1]:
                    await asyncio.sleep(60)

        # Also when what runs the tests has it ignored, as a shell does for what runs in its background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    run, entered, started = done.stdout.split()
    assert "KeyboardInterrupt" in done.stderr
    assert "never retrieved" not in done.stderr
    assert server.client.get(run).error.code == Code.ABORTED
    assert server.client.get(entered).error.code == Code.ABORTED
    assert not server.client.get(started).done  # nobody has begun it: its lease lapses


async def test_nothing_can_be_started_once_closed(producer: Producer) -> None:
    await producer.close()

    with pytest.raises(RuntimeError, match="closed"):
        await producer.start()
