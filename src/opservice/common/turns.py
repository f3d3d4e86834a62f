"""What is done one by one, by callers in turn: who asks for much keeps themselves waiting, not others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from math import inf

from opservice.domain.errors import ServerBusy


class Turns:
    """Lets one in at a time; of each caller who waits one, before anybody's next."""

    def __init__(self, max_waiting: float = inf) -> None:
        """At most `max_waiting` wait, of all callers together."""
        self._max_waiting = max_waiting
        self._waits = 0
        self._busy = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Waits until it is the caller's turn, which lasts as long as the block.

        Raises ServerBusy when `max_waiting` others wait.
        """
        if self._busy:
            await self._wait(caller)
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, caller: str) -> None:
        if self._waits >= self._max_waiting:
            raise ServerBusy
        self._waits += 1
        let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(caller, deque())
        queue.append(let_in)
        try:
            await let_in
        except asyncio.CancelledError:
            if let_in.done() and not let_in.cancelled():
                self._pass_on()  # it was their turn
            else:
                with suppress(ValueError):  # it was taken out meanwhile
                    queue.remove(let_in)
                if not queue and self._waiting.get(caller) is queue:
                    del self._waiting[caller]
            raise
        finally:
            self._waits -= 1

    def _pass_on(self) -> None:
        """To the next caller; the one whose turn it is then goes behind the others."""
        self._busy = False
        while self._waiting and not self._busy:
            caller, queue = self._waiting.popitem(last=False)
            let_in = queue.popleft()
            if queue:
                self._waiting[caller] = queue
            if not let_in.cancelled():
                self._busy = True
                let_in.set_result(None)
