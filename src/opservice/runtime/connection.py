"""Whole messages between the supervisor and a worker, over a pair of sockets.

On the wire: a length (4 bytes, big-endian), then that many bytes of pickle. Both ends are processes of this
server, and nobody else has the sockets. A message is never taken in part: only the end of the connection
means that nothing more comes.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from contextlib import suppress
from typing import Any, Self

_LENGTH_BYTES = 4


class MessageConnection:
    """One end. Nothing here blocks the event loop, however slow the other end is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # Makes `send` wait until everything is written, so that little is kept for a slow reader.
        writer.transport.set_write_buffer_limits(high=0)

    @classmethod
    async def over(cls, connection: socket.socket) -> Self:
        """Takes the socket over, which is closed with this."""
        return cls(*await asyncio.open_unix_connection(sock=connection))

    async def receive(self) -> Any:
        """The next message. Raises EOFError when the other end has closed, or is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
            content = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise EOFError from error
        return pickle.loads(content)  # noqa: S301 - from a process of this server

    def post(self, message: object) -> None:
        """Sends without waiting. The message is lost when the other end is gone."""
        content = pickle.dumps(message)
        with suppress(OSError, RuntimeError):  # the other end is gone, or `end` was called
            self._writer.write(len(content).to_bytes(_LENGTH_BYTES) + content)

    async def send(self, message: object) -> None:
        """Returns once the message has left this process, or the other end is gone."""
        self.post(message)
        with suppress(OSError):
            await self._writer.drain()

    @property
    def idle(self) -> bool:
        """Whether everything that was posted has left this process."""
        return not self._writer.transport.get_write_buffer_size()

    def end(self) -> None:
        """Tells the other end that nothing more will come. Messages from there can still be received."""
        with suppress(OSError, RuntimeError):
            self._writer.write_eof()

    def close(self) -> None:
        """Closes the connection at once. What was not sent yet is lost."""
        self._writer.transport.abort()
