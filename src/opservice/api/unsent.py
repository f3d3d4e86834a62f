"""Large answers on their way: memory that a caller holds who asks for much and reads nothing."""

from __future__ import annotations

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


class Unsent:
    """At most `most` bytes, and of one connection an eighth of it. Beyond it answers are refused."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all = 0
        self._of_peer: Counter[str] = Counter()

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
        if size > 0 and (self._all + size > self._most or of_peer > self._most // _CONNECTIONS):
            raise ServerBusy
        self._all += size
        self._of_peer[peer] = of_peer
        if not of_peer:
            del self._of_peer[peer]
