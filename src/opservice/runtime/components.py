"""Tasks that run beside the server until it stops. One that fails stops the server, and is not missed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from opservice.common.loggers import get_logger
from opservice.domain.errors import OpserviceError

log = get_logger("opservice.components")


class ComponentFailed(OpserviceError):
    """A part of the server failed, and so the server has stopped. The log says why."""


class Components:
    """Starts tasks within an `async with` block, and cancels those that still run when the block ends.

    When a task fails, or ends although it should not, the log says which, and `stop` is set, so that the
    server drains. The end of the block then raises ComponentFailed, unless the block itself has raised.
    """

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._cancelled = False
        self._failed: list[str] = []

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()
        # Without the block's own error, which the group would wrap. It goes on as it is.
        await self._group.__aexit__(None, None, None)
        if error is None and self._failed:
            raise ComponentFailed(f"{self._failed[0]} failed, and so the server has stopped")

    def start(
        self, name: str, work: Coroutine[Any, Any, None], *, may_end: bool = False
    ) -> asyncio.Task[None]:
        """Runs the work as a task. With `may_end` it is no failure when the work returns."""
        task = self._group.create_task(self._run(name, work, may_end=may_end), name=name)
        # Else Python warns of work that was cancelled before it began, such as by a SIGTERM at the start.
        task.add_done_callback(lambda _: work.close())
        self._tasks.append(task)
        return task

    def cancel(self) -> None:
        """Cancels all tasks, without waiting for them."""
        self._cancelled = True
        for task in self._tasks:
            task.cancel()

    async def _run(self, name: str, work: Coroutine[Any, Any, None], *, may_end: bool) -> None:
        try:
            await work
            if may_end or self._stop.is_set():
                return
            log.error("a component ended, and so the server stops", component=name)
        except asyncio.CancelledError:
            if self._cancelled:
                raise
            log.exception("a component was cancelled, and so the server stops", component=name)
        except Exception:
            log.exception("a component failed, and so the server stops", component=name)
        self._failed.append(name)
        self._stop.set()
