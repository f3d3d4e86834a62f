"""Unread responses: memory that a client takes up who asks for much and reads nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opservice.common.jitter import jitter
from opservice.domain.errors import ServerBusy

_SMALL = 32 << 10
"""Responses of fewer bytes are not counted: the limits of calls and connections bound them."""
_CONNECTIONS = 8
"""That may hold as much as they can before others are refused."""
_SLOWED = 4
"""A connection that holds more than this part of what it may is slowed down."""
_SECONDS_PER_CALL, _MOST_SECONDS = 0.02, 10.0
"""Calls of such connections begin so much later for each that is held up at the time, at most so much."""


class UnreadResponses:
    """At most `most` bytes, and of one connection an eighth of it. Beyond it responses are refused.

    Long before, further calls of such a connection begin later, and not together: to make large responses,
    or to refuse them, for hundreds at once would keep all others waiting. There is no queue and the delay has
    a bound, so that a proxy's connection goes on for all who share it when one of them reads nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_peer = most // _CONNECTIONS
        self._all = 0
        self._of_peer: Counter[str] = Counter()
        self._slowed: set[str] = set()
        self._held_up = 0

    async def wait_for_turn(self, peer: str) -> None:
        """Before a call begins that does no harm when it begins later: at once, or seconds later."""
        if self._slowed and peer in self._slowed:
            self._held_up += 1
            try:
                most = min(_MOST_SECONDS, _SECONDS_PER_CALL * self._held_up)
                await asyncio.sleep(jitter.uniform(most / 2, most))
            finally:
                self._held_up -= 1

    def add(self, peer: str, size: int) -> Callable[[], None] | None:
        """Counts a response of so many bytes. Returns what to call once it is read, None if nothing.

        Raises ServerBusy.
        """
        if size < _SMALL:
            return None
        self._change(peer, size)
        return lambda: self._change(peer, -size)

    @contextmanager
    def written(self, peer: str, size: int) -> Iterator[None]:
        """Counts a response during the block. Raises ServerBusy."""
        done = self.add(peer, size)
        try:
            yield
        finally:
            if done is not None:
                done()

    def _change(self, peer: str, size: int) -> None:
        of_peer = self._of_peer[peer] + size
        if size > 0 and (self._all + size > self._most or of_peer > self._most_of_peer):
            raise ServerBusy("Too many large responses are unread: read them, then ask again.")
        self._all += size
        self._of_peer[peer] = of_peer
        if not of_peer:
            del self._of_peer[peer]
        if of_peer > self._most_of_peer // _SLOWED:
            self._slowed.add(peer)
        else:
            self._slowed.discard(peer)
