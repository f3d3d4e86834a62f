"""A network that loses a COMMIT, or the answer to one, between a client and PostgreSQL."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from typing import Literal, Self

Loss = Literal["request", "answer"]

_COMMIT = b"COMMIT"
# ReadyForQuery, outside a transaction: the end of the server's answer to a COMMIT.
_READY = b"Z\0\0\0\5I"
_CHUNK = 1 << 16


class CommitLosingProxy:
    """Forwards connections to a server on this machine until it is told to lose a COMMIT."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._loss: Loss | None = None
        self.lost = 0
        """How many COMMITs it has lost."""
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []

    def lose_next(self, loss: Loss) -> None:
        """Of the next COMMIT, either the server never hears, or the client never hears the answer.

        The connection is cut then; connections made later work.
        """
        self._loss = loss

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing alone does not wake a thread that accepts or receives.
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # cut already
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._open += [client, server]
            thread = threading.Thread(target=self._forward, args=(client, server))
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            try:
                while True:
                    ready = {key.fileobj for key, _ in selector.select()}
                    if server in ready:
                        if not (answer := server.recv(_CHUNK)):
                            return
                        client.sendall(answer)
                    if client in ready:
                        if not (request := client.recv(_CHUNK)):
                            return
                        if _COMMIT in request and self._loss is not None:
                            self._lose(request, server)
                            return
                        server.sendall(request)
            except OSError:
                return  # one of them hung up

    def _lose(self, request: bytes, server: socket.socket) -> None:
        loss, self._loss = self._loss, None
        if loss == "answer":
            server.sendall(request)
            answer = b""
            while not answer.endswith(_READY):
                received = server.recv(_CHUNK)
                assert received, "the server hung up before it answered"
                answer += received
        self.lost += 1
