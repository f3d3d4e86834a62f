"""Large answers on their way: memory that a caller holds who asks for much and reads nothing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from grpc.aio import ServicerContext

from opservice.domain.errors import ServerBusy

Context: TypeAlias = "ServicerContext[Any, Any]"

_SMALL = 32 << 10
"""Answers of fewer bytes are not counted: the limits of calls and connections bound them."""
_CONNECTIONS = 8
"""That may hold as much as they can before others are refused."""
_SLOWED = 4
"""A connection that holds more than this part of what it may is slowed down."""
_SECONDS_PER_CALL, _MOST_SECONDS = 0.02, 10.0
"""Calls of such connections begin so much later for each that is held up at the time, at most so much."""


class Unsent:
    """At most `most` bytes, and of one connection an eighth of it. Beyond it answers are refused.

    Long before, further calls of such a connection begin later, and not together: to make large answers, or
    to refuse them, for hundreds at once would keep all others waiting. There is no queue and the delay has a
    bound, so that a proxy's connection goes on for all who share it when one of them reads nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_peer = most // _CONNECTIONS
        self._all = 0
        self._of_peer: Counter[str] = Counter()
        self._slowed: set[str] = set()
        self._held_up = 0

    async def turn(self, context: Context) -> None:
        """Before a call begins that does no harm when it begins later: at once, or seconds later."""
        if self._slowed and context.peer() in self._slowed:
            self._held_up += 1
            try:
                most = min(_MOST_SECONDS, _SECONDS_PER_CALL * self._held_up)
                await asyncio.sleep(random.uniform(most / 2, most))
            finally:
                self._held_up -= 1

    def until_done(self, answer: bytes, context: Context) -> None:
        """Counts an answer until its call is over. Raises ServerBusy."""
        if len(answer) >= _SMALL:
            peer, size = context.peer(), len(answer)
            self._add(peer, size)
            context.add_done_callback(lambda _: self._add(peer, -size))  # type: ignore[arg-type] # wrong in its stubs

    @contextmanager
    def while_written(self, answer: bytes, context: Context) -> Iterator[None]:
        """Counts an answer during the block. Raises ServerBusy."""
        if len(answer) < _SMALL:
            yield
            return
        peer, size = context.peer(), len(answer)
        self._add(peer, size)
        try:
            yield
        finally:
            self._add(peer, -size)

    def _add(self, peer: str, size: int) -> None:
        of_peer = self._of_peer[peer] + size
        if size > 0 and (self._all + size > self._most or of_peer > self._most_of_peer):
            raise ServerBusy("Too many large answers are on their way: read them, then ask again.")
        self._all += size
        self._of_peer[peer] = of_peer
        if not of_peer:
            del self._of_peer[peer]
        if of_peer > self._most_of_peer // _SLOWED:
            self._slowed.add(peer)
        else:
            self._slowed.discard(peer)
