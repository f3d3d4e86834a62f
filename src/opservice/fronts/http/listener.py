"""Takes connections: few in each turn of the event loop, and never more than there is room for."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from opservice.common.loggers import get_logger

_BACKLOG = 2048
"""Connections that the kernel keeps for us."""
_MOST_AT_ONCE = 16
"""Connections that are taken in one turn of the event loop. The first turn takes one, and each turn that
leaves some waiting lets the next take one more.

If hundreds were taken together, their requests would keep all others waiting. If only one was, new clients
would wait in the kernel until a flood is over.
"""
_LONG_SECONDS = 0.01
"""After a turn that took longer half as many are taken."""
_RETRY_SECONDS = 1.0
"""After there was no file for a connection."""
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = get_logger("opservice.http")


class Listener:
    """Takes connections on sockets that are bound, and begins TLS on them."""

    def __init__(
        self,
        protocol: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        most: int,
        handshake_seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`connections` are those that have begun: with those in a handshake there are at most `most`.

        `clock` returns seconds.
        """
        self._protocol = protocol
        self._connections = connections
        self._most = most
        self._handshake_seconds = handshake_seconds
        self._clock = clock
        self._at_once = 1
        self._took_at = 0.0
        self._left_some = False
        """Whether more were waiting than were taken last."""
        self._sockets: Sequence[socket.socket] = ()
        self.arriving: dict[asyncio.Task[None], asyncio.Protocol] = {}
        """Connections that have not begun, or have just done so."""
        self.tls: ssl.SSLContext | None = None
        """For connections that are taken from now on."""

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Takes connections from now on. The sockets are closed when the listener stops."""
        self._sockets = sockets
        for each in sockets:
            each.setblocking(False)
            each.listen(_BACKLOG)
            self._listen(each)

    def stop(self, seconds: float) -> None:
        """Takes what the kernel has already, and no more. Handshakes have so many seconds from now on."""
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
            self._take(each, _BACKLOG)
            each.close()
        self._sockets = ()
        asyncio.get_running_loop().call_later(seconds, self.abort)

    def abort(self) -> None:
        """Ends the handshakes that are in progress."""
        for task in self.arriving:
            task.cancel()

    def _listen(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listening, self._take_some, listening)

    def _take_some(self, listening: socket.socket) -> None:
        """Called in each turn of the event loop in which there are any."""
        now = self._clock()
        if not self._left_some:
            self._at_once = 1
        elif now - self._took_at > _LONG_SECONDS:
            self._at_once = max(1, self._at_once // 2)
        else:
            self._at_once = min(_MOST_AT_ONCE, self._at_once + 1)
        self._took_at = now
        self._left_some = self._take(listening, self._at_once)

    def _take(self, listening: socket.socket, most: int) -> bool:
        """Returns whether there may be more."""
        loop = asyncio.get_running_loop()
        beginning = sum(each not in self._connections for each in self.arriving.values())
        room = self._most - len(self._connections) - beginning
        for _ in range(most):
            try:
                taken, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                if error.errno not in _NO_FILES:
                    continue  # of a connection that is gone already
                log.warning("a connection has to wait", reason=error.strerror)
                loop.remove_reader(listening)
                loop.call_later(_RETRY_SECONDS, self._listen, listening)
                return False
            if room <= 0:
                taken.close()
                continue
            room -= 1
            taken.setblocking(False)
            protocol = self._protocol()
            task = loop.create_task(self._begin(taken, protocol))
            self.arriving[task] = protocol
            task.add_done_callback(self.arriving.pop)
        return True

    async def _begin(self, taken: socket.socket, protocol: asyncio.Protocol) -> None:
        with suppress(OSError):  # a handshake that fails, or a client that has left meanwhile
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol,
                    taken,
                    ssl=self.tls,
                    ssl_handshake_timeout=None if self.tls is None else self._handshake_seconds,
                )
            except BaseException:
                taken.close()
                raise
