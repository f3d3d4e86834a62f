"""Callers take turns, so that a caller who asks for much waits longer, and the others do not."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from opservice.domain.errors import ServerBusy

_LONG_SECONDS = 0.004
"""For each time that a turn of the event loop has taken so long, one more may begin in the next."""
_MOST_AT_ONCE = 16
"""Begin in one turn of the event loop, however long the one before has taken."""


class Turns:
    """Lets one in at a time; of each caller who waits one, before anybody's next."""

    def __init__(self, max_waiting: int) -> None:
        """At most `max_waiting` wait, of all callers together."""
        self._max_waiting = max_waiting
        self._busy = False
        self._waiting = _Waiting()

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Waits until it is the caller's turn, which lasts as long as the block.

        Raises ServerBusy when `max_waiting` others wait.
        """
        if self._busy:
            if self._waiting.number >= self._max_waiting:
                raise ServerBusy
            await self._waiting.wait(caller, self._pass_on)
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        self._busy = self._waiting.let_in()


class Beginnings:
    """Lets few begin in each turn of the event loop, each caller's first before anybody's second.

    After a long turn more of them begin: if it was always one, those who wait would fall behind on a busy
    server, whose turns are long.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._looked_at = 0.0
        self._looks = False
        """Whether something has begun in this turn of the event loop."""
        self._waiting = _Waiting()

    async def turn(self, caller: str) -> None:
        """Waits until what the caller asks for may begin."""
        if self._looks:
            await self._waiting.wait(caller, lambda: None)
        else:
            self._look_again()

    def _look_again(self) -> None:
        self._looks = True
        self._looked_at = self._clock()
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        long = int((self._clock() - self._looked_at) / _LONG_SECONDS)
        self._looks = False
        for _ in range(min(1 + long, _MOST_AT_ONCE)):
            if not self._waiting.let_in():
                break
            self._looks = True
        if self._looks:
            self._look_again()


class _Waiting:
    """Those who wait, of whom each caller's first comes before anybody's second."""

    def __init__(self) -> None:
        self.number = 0
        self._of: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def wait(self, caller: str, pass_on: Callable[[], object]) -> None:
        """Waits until the caller is let in. Calls `pass_on` if they were let in, but have given up."""
        let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._of.setdefault(caller, deque())
        queue.append(let_in)
        self.number += 1
        try:
            await let_in
        except asyncio.CancelledError:
            if let_in.done() and not let_in.cancelled():
                pass_on()
            else:
                with suppress(ValueError):  # it was taken out meanwhile
                    queue.remove(let_in)
                if not queue and self._of.get(caller) is queue:
                    del self._of[caller]
            raise
        finally:
            self.number -= 1

    def let_in(self) -> bool:
        """Lets in one, whose caller goes behind the others. Returns whether anybody was there."""
        while self._of:
            caller, queue = self._of.popitem(last=False)
            let_in = queue.popleft()
            if queue:
                self._of[caller] = queue
            if not let_in.cancelled():
                let_in.set_result(None)
                return True
        return False
