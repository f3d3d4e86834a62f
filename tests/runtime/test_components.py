"""A component that fails stops the server, and is not missed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine

import pytest

from opservice.domain.errors import StartupError
from opservice.runtime.components import ComponentFailed, Components
from support.logs import capture_logs
from support.server import PATIENCE


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise RuntimeError("unexpected")


async def end() -> None:
    pass


class Server:
    """Runs components until `stop` is set, as the server does."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.drained = False

    async def run(self, **works: Coroutine[None, None, None]) -> None:
        async with Components(self.stop) as components:
            for name, work in works.items():
                components.start(name, work)
            await asyncio.wait_for(self.stop.wait(), PATIENCE)
            await asyncio.sleep(0)
            self.drained = True


async def test_a_component_that_fails_sets_stop_and_is_named() -> None:
    server = Server()
    with capture_logs() as logged, pytest.raises(ComponentFailed, match="sweeps failed"):
        await server.run(keys=forever(), sweeps=fail())

    assert server.drained
    (line,) = logged
    assert line["event"] == "a component failed, and so the server stops"
    assert (line["component"], line["log_level"]) == ("sweeps", "error")
    assert line["exc_info"]


async def test_a_component_that_ends_although_it_should_not_is_a_failure() -> None:
    with capture_logs() as logged, pytest.raises(ComponentFailed):
        await Server().run(sweeps=end())

    assert [line["event"] for line in logged] == ["a component ended, and so the server stops"]


async def test_a_component_that_something_else_cancels_is_a_failure() -> None:
    async def cancelled() -> None:
        inner = asyncio.create_task(forever())
        inner.cancel()
        await inner

    with capture_logs() as logged, pytest.raises(ComponentFailed):
        await Server().run(sweeps=cancelled())

    assert [line["event"] for line in logged] == [
        "a component was cancelled, and so the server stops"
    ]


async def test_a_component_may_end_when_it_was_said_to_or_when_the_server_stops() -> None:
    stop = asyncio.Event()

    async def until_stop() -> None:
        await stop.wait()

    with capture_logs() as logged:
        async with Components(stop) as components:
            await components.start("the demo", end(), may_end=True)
            assert not stop.is_set()
            waiting = components.start("the sweeps", until_stop())
            stop.set()
            await waiting

    assert logged == []


async def test_the_end_of_the_block_cancels_what_still_runs() -> None:
    ended = asyncio.Event()

    async def until_cancelled() -> None:
        try:
            await forever()
        finally:
            ended.set()

    async with Components(asyncio.Event()) as components:
        task = components.start("the sweeps", until_cancelled())
        await asyncio.sleep(0)

    assert task.cancelled()
    assert ended.is_set()


async def test_an_error_of_the_block_goes_on_as_it_is() -> None:
    async def block(stop: asyncio.Event) -> None:
        async with Components(stop) as components:
            components.start("sweeps", fail())
            await asyncio.wait_for(stop.wait(), PATIENCE)
            raise StartupError("the port is taken")

    with capture_logs(), pytest.raises(StartupError, match="the port is taken"):
        await block(asyncio.Event())


async def test_a_component_that_fails_while_it_is_cancelled_is_named_too() -> None:
    server = Server()

    async def fail_late() -> None:
        server.stop.set()
        try:
            await forever()
        finally:
            raise RuntimeError("unexpected")

    with capture_logs() as logged, pytest.raises(ComponentFailed, match="sweeps"):
        await server.run(sweeps=fail_late())

    assert [line["component"] for line in logged] == ["sweeps"]


async def test_work_that_is_cancelled_before_it_begins_is_closed() -> None:
    """Else Python warns that it was never awaited, when SIGTERM comes while a server starts."""
    work = forever()
    async with Components(asyncio.Event()) as components:
        components.start("early", work)
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
