"""Runs work that may block on threads. The end of the process does not wait for them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Generic, TypeVar

Result = TypeVar("Result")


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switches garbage collection off in the whole process, for work that makes many objects which stay.

    A collection would look at all of them, and stop all threads meanwhile. Objects without cycles are freed
    all the same.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class OneThread(Generic[Result]):
    """Runs one piece of work at a time, on a thread. Work that never ends takes one thread, and no more."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether the previous work still runs."""
        return self._thread is not None and self._thread.is_alive()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Returns or raises what the work does. When this call is cancelled, the work goes on.

        Must not be called while `busy`.
        """
        assert not self.busy
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def finish(results: list[Result], error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(results[0])

        def body() -> None:
            results, failure = [], None
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - goes to the caller
                failure = error
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish, results, failure)

        thread = self._thread = Thread(target=body, name=self._name, daemon=True)
        thread.start()
        try:
            return await done
        finally:
            if not done.cancelled():
                thread.join()  # it has nothing left to do
