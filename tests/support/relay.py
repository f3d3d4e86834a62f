"""The network between clients and a server, which can be made to fail."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self, cast


class Relay:
    """Passes connections on to a server, which may be away, until it is told to lose, to freeze and to cut.

    It belongs to the event loop that entered it.
    """

    def __init__(self, target: str, host: str = "127.0.0.1", port: int = 0) -> None:
        """It listens at `host`, at a port of the system's choice unless one is given."""
        self._here = host, port
        host, port_there = target.rsplit(":", 1)
        self._target = host, int(port_there)
        self._open: set[asyncio.Transport] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self.address = ""
        self.loses_answers = False
        self.is_silent = False
        """Whether later connections are made and then not passed on."""
        self.connections = 0
        """How many were made to it."""
        self.cuts = 0
        """How many times it has cut connections that there were."""

    def lose_answers(self) -> None:
        """Until the next cut the server hears its clients, but they do not hear the server."""
        self.loses_answers = True

    def freeze(self) -> None:
        """Nothing passes any more on the connections that there are, which stay open. Later ones work."""
        for transport in self._open:
            if not transport.is_closing():
                transport.pause_reading()

    def fall_silent(self) -> None:
        """As a server that hangs: connections stay open, and can be made, but nothing passes any more."""
        self.is_silent = True
        self.freeze()

    def cut(self) -> None:
        """Ends all connections at once; those made later work."""
        self.loses_answers = False
        self.cuts += bool(self._open)
        for transport in list(self._open):
            transport.abort()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Inner(self), *self._here)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        await asyncio.sleep(0.01)  # what it has just accepted has not been made a connection yet
        while self._open or self._connecting:
            self.cut()
            await asyncio.sleep(0.01)

    def connect(self, inner: _Inner) -> None:
        task = asyncio.create_task(self._connect(inner))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, inner: _Inner) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Outer(self, inner), *self._target)
        except OSError:
            inner.transport.abort()


class _End(asyncio.Protocol):
    """One end of a connection: what it receives goes to its peer."""

    transport: asyncio.Transport
    peer: asyncio.Transport | None = None

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.relay._open.add(self.transport)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.relay._open.discard(self.transport)
        if self.peer is not None:
            self.peer.abort()


class _Inner(_End):
    """The client's end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()  # until there is a peer
        self.relay.connections += 1
        if not self.relay.is_silent:
            self.relay.connect(self)


class _Outer(_End):
    """The server's end."""

    def __init__(self, relay: Relay, inner: _Inner) -> None:
        super().__init__(relay)
        self._inner = inner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Here, since the server may speak at once.
        self.peer, self._inner.peer = self._inner.transport, self.transport
        if self.peer.is_closing():
            self.transport.abort()
        else:
            self.peer.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self.relay.loses_answers:
            super().data_received(data)
