"""A TCP proxy that loses an answer: it passes the request on, and then cuts the connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self


class CuttingProxy:
    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.lost = 0
        """How many times it has cut."""
        self._arrived: Callable[[], bool] | None = None
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def lose_answer_when(self, arrived: Callable[[], bool]) -> None:
        """From now on nothing is passed back; once `arrived` is true, all connections end.

        `arrived` should tell of an answered call: one that is cut before its answer ends CANCELLED.

        Then it passes everything on as before.
        """
        self._arrived = arrived
        self._spawn(self._cut)

    def _cut(self) -> None:
        assert self._arrived is not None
        while not self._arrived():
            time.sleep(0.01)
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self.lost += 1
            self._arrived = None

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                outer = socket.create_connection(self._target)
                self._open += [inner, outer]
                self._spawn(self._pass_on, inner, outer)
                self._spawn(self._pass_back, outer, inner)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def _pass_back(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    if self._arrived is None:
                        sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def _spawn(self, function: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in [self._listener, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)
        for each in [self._listener, *self._open]:
            each.close()
