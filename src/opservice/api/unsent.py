"""Large answers on their way: memory that a caller holds who asks for much and reads nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from grpc.aio import ServicerContext

from opservice.errors import ServerBusy

Context: TypeAlias = "ServicerContext[Any, Any]"

_SMALL = 32 << 10
"""Answers of fewer bytes are not counted: the limits of calls and connections bound them."""
_CONNECTIONS = 8
"""That may hold as much as they can before others are refused."""
_SLOWED = 4
"""A connection that holds more than this part of what it may is slowed down."""
_PAUSE_SECONDS = 0.02
"""From one call to the next, of all connections that are slowed down."""


class Unsent:
    """At most `most` bytes, and of one connection an eighth of it. Beyond it answers are refused.

    Long before, further calls of such a connection begin one after the other, with pauses: to make large
    answers, or to refuse them, for a hundred at once would keep all others waiting.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_peer = most // _CONNECTIONS
        self._all = 0
        self._of_peer: Counter[str] = Counter()
        self._next_at: dict[str, float] = {}
        """When the next call may begin of each connection that is slowed down."""

    async def turn(self, context: Context) -> None:
        """Waits until a call may begin."""
        if not self._next_at:
            return
        peer = context.peer()
        if peer in self._next_at:
            now = asyncio.get_running_loop().time()
            begins = max(now, self._next_at[peer])
            self._next_at[peer] = begins + self._pause()
            await asyncio.sleep(begins - now)

    def _pause(self) -> float:
        return _PAUSE_SECONDS * len(self._next_at)

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
            raise ServerBusy
        self._all += size
        self._of_peer[peer] = of_peer
        if not of_peer:
            del self._of_peer[peer]
        if of_peer <= self._most_of_peer // _SLOWED:
            self._next_at.pop(peer, None)
        elif peer not in self._next_at:
            self._next_at[peer] = asyncio.get_running_loop().time() + self._pause()
