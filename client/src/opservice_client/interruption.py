"""The cancellation of the task that does a work, told from those of others."""

from __future__ import annotations

import asyncio
import sys
from typing import Any


class Interruption:
    """The cancellation of the task that is in the block, as asyncio.timeout has it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._cancels_before = 0
        self.is_pending: bool = False
        """Whether the task was cancelled and has not left the block yet."""

    def guard(self, task: asyncio.Task[Any] | None) -> None:
        self._task = task
        self._cancels_before = _cancels(task)

    def interrupt(self) -> bool:
        """Cancels the task, if it is in the block. False when it is not."""
        if self._task is None or self._task.done():
            return False
        self.is_pending = True
        self._task.cancel()
        return True

    def leave(self, error: BaseException | None) -> bool:
        """Whether the block is left because of this cancellation, and of no other."""
        task, self._task = self._task, None
        if not self.is_pending or task is None:
            return False
        self.is_pending = False
        others = 0
        if sys.version_info >= (3, 11):
            others = task.uncancel() - self._cancels_before
        return isinstance(error, asyncio.CancelledError) and others <= 0


def _cancels(task: asyncio.Task[Any] | None) -> int:
    """How often the task was asked to end; 0 before Python 3.11, which does not count."""
    if task is None or sys.version_info < (3, 11):
        return 0
    return task.cancelling()


def is_cancelled_by_nobody(error: BaseException) -> bool:
    """Whether work raised CancelledError though nobody cancelled its task: something it awaited was."""
    if not isinstance(error, asyncio.CancelledError) or sys.version_info < (3, 11):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # in no event loop
        return False
    return task is not None and not task.cancelling()
