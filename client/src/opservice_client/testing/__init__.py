"""opservice within a test's own process: for the tests of a service that runs work as operations.

from opservice_client.testing import OperationServer

with OperationServer() as server:  # or: async with
    producer = Producer(server.target)
    ...
    operation = server.wait(operation.id)
    assert operation.response.Unpack(registry)
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import importlib.util
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import grpc
import grpc.aio

from opservice_client import processes, sync
from opservice_client._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client.testing import calls
from opservice_client.testing.memory import MemoryServer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["OperationServer"]

_SERVER = "opservice.main.embedded"
_PATIENCE = timedelta(seconds=10)
_CANCEL_GRACE = timedelta(minutes=1)
_LONGEST = timedelta(days=3650)
_TO_STOP_SECONDS = 30.0
_SOCKET_DIRECTORY = re.compile(r"[\w./+@,=~-]{1,90}", re.ASCII)
"""Of a Unix socket: the kernel takes 107 bytes, and gRPC and opservice not all characters."""


class _Backend(Protocol):
    @property
    def target(self) -> str: ...
    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None: ...
    def advance(self, by: timedelta) -> None: ...


class OperationServer:
    """opservice within this process, on a Unix socket: no port is taken.

    Use it in a `with` or an `async with` block, or call `start` and `close`. Each one has its own operations,
    none at first. It runs on a thread and an event loop of its own, so it answers whatever the test does.

    `backend` is "server" for the real server, on an SQLite file in a temporary directory, or "memory" for one
    that keeps its operations in memory and answers in the same way, but has less (see the
    documentation). By default, "auto", it is the real one if the package opservice is installed.
    `cancel_grace` is how long the producer of a cooperative operation may take to end it after a Cancel.

    Except for `start` and `close`, its methods raise grpc.RpcError for what the server refuses, such as
    NOT_FOUND for an unknown operation, and RuntimeError while it does not run. A process that is forked
    while it runs cannot use it.
    """

    backend: Literal["server", "memory"]
    """Which one it is."""

    def __init__(
        self,
        *,
        backend: Literal["auto", "server", "memory"] = "auto",
        cancel_grace: timedelta = _CANCEL_GRACE,
    ) -> None:
        """Raises ValueError for another backend, and for a `cancel_grace` below 0 or above ten years.

        Raises RuntimeError for the server when it is not installed.
        """
        if not timedelta(0) <= cancel_grace <= _LONGEST:
            raise ValueError(f"cancel_grace is {cancel_grace}, allowed is 0 to {_LONGEST}")
        if backend not in ("auto", "server", "memory"):
            raise ValueError(f"backend is {backend!r}, must be 'auto', 'server' or 'memory'")
        if backend == "server" and not _is_server_installed():
            raise RuntimeError("the real server is not installed: pip install opservice")
        if backend == "auto":
            backend = "server" if _is_server_installed() else "memory"
        self.backend = backend
        self._cancel_grace = cancel_grace
        self._was_started = False
        self._running: _Running | None = None

    @property
    def target(self) -> str:
        """What a Producer or a channel connects to."""
        return self._in_use().backend.target

    def start(self) -> Self:
        """Returns once it serves. Raises RuntimeError when it was started before, and what it fails with."""
        if self._was_started:
            raise RuntimeError("an OperationServer is started once: make another one")
        self._was_started = True
        self._running = _Running(self.backend, self._cancel_grace)
        return self

    def close(self) -> None:
        """Stops it, as a server that goes away, and forgets all operations. Does nothing the second time.

        Close producers first: what they have to say is not heard any more.
        """
        running, self._running = self._running, None
        if running is not None and not running.is_the_parents:
            running.close()

    def get(self, operation_id: str) -> Operation:
        """The operation as it is now."""
        return calls.get(self._in_use().channel, operation_id)

    def record(self, operation_id: str) -> OperationRecord:
        """The operation with its progress, its lease and what else the server keeps beside it."""
        return calls.record(self._in_use().channel, operation_id)

    def records(self, parent: str = "-") -> list[OperationRecord]:
        """All operations of the parent, or of all parents, the newest first."""
        return calls.records(self._in_use().channel, parent)

    def cancel(self, operation_id: str) -> Operation:
        """Cancels the operation as its user does, and returns it as it is then.

        What becomes of it is for its cancel policy to say.
        """
        return calls.cancel(self._in_use().channel, operation_id)

    def wait(self, operation_id: str, timeout: timedelta = _PATIENCE) -> Operation:
        """The operation once it is done. Raises TimeoutError when it is not within that time.

        It blocks: where the work runs on the event loop of the test, use `wait_aio`.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        channel = self._in_use().channel
        while True:
            left = deadline - time.monotonic()
            record = calls.wait(channel, operation_id, left)
            if record.operation.done:
                return record.operation
            if left <= 0:
                raise _not_done(record, timeout)

    async def wait_aio(self, operation_id: str, timeout: timedelta = _PATIENCE) -> Operation:
        """The same as `wait`, for a test with asyncio: the event loop goes on meanwhile."""
        deadline = time.monotonic() + timeout.total_seconds()
        async with grpc.aio.insecure_channel(self.target) as channel:
            while True:
                left = deadline - time.monotonic()
                record = await calls.wait_aio(channel, operation_id, left)
                if record.operation.done:
                    return record.operation
                if left <= 0:
                    raise _not_done(record, timeout)

    def advance(self, by: timedelta) -> None:
        """Moves the server's clock on, as if so much time had passed without a sign of any producer.

        When this returns, what became due has happened: leases have expired, timeouts were reached, cancel
        grace periods are over, operations were deleted. The clock of the test stays as it is.

        Raises ValueError when `by` is negative, or longer than ten years.
        """
        if not timedelta(0) <= by <= _LONGEST:
            raise ValueError(f"cannot advance by {by}: allowed is 0 to {_LONGEST}")
        self._in_use().backend.advance(by)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _in_use(self) -> _Running:
        if self._running is None or self._running.is_the_parents:
            raise RuntimeError(
                "the OperationServer does not run: use it in a with block, or call start; a forked process"
                " cannot use that of its parent"
            )
        return self._running


class _Running:
    """A backend that serves, on a thread, in a temporary directory."""

    _stop: asyncio.Event  # of the thread's loop

    def __init__(self, backend: str, cancel_grace: timedelta) -> None:
        """Returns once it serves. Raises what it fails with."""
        self.is_the_parents: bool = False
        processes.tell_after_fork(self, _Running._forget)
        self._directory = _temporary_directory()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        # A daemon: a process that ends without closing it is not kept alive.
        self._thread = threading.Thread(target=self._run, name="opservice-testing", daemon=True)
        try:
            self.backend = _backend(backend, self._directory, cancel_grace)
            self._thread.start()
            self._ready.wait()
            self._raise_failure()
            self.channel = grpc.insecure_channel(self.backend.target)
        except BaseException:
            self._end()
            raise
        _open.add(self)

    def close(self) -> None:
        """Raises what the backend has failed with, and RuntimeError when it does not stop."""
        _open.discard(self)
        self.channel.close()
        self._end()
        self._raise_failure()

    def _run(self) -> None:
        async def serve() -> None:
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            if not self._is_stopping:
                await self.backend.run(self._stop, self._ready.set)

        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 - goes to who starts or closes it
            self._failure = error
        finally:
            self._ready.set()

    def _forget(self) -> None:
        """Called in the child after a fork: the thread, the channel and the directory are the parent's."""
        self.is_the_parents = True
        _open.discard(self)
        processes.keep(self)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _end(self) -> None:
        self._is_stopping = True
        try:
            if self._loop is not None:
                with suppress(RuntimeError):  # it has ended by itself
                    self._loop.call_soon_threadsafe(self._stop.set)
            if self._thread.ident is not None:
                self._thread.join(_TO_STOP_SECONDS)
                if self._thread.is_alive():
                    raise RuntimeError(f"the server did not stop within {_TO_STOP_SECONDS:g} s")
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)


def _is_server_installed() -> bool:
    try:
        return importlib.util.find_spec(_SERVER) is not None
    except ModuleNotFoundError:  # of the packages that it is in
        return False


def _backend(name: str, directory: Path, cancel_grace: timedelta) -> _Backend:
    if name == "memory":
        return MemoryServer(directory, cancel_grace=cancel_grace)
    # Here and by name: the client does not need the server.
    embedded = importlib.import_module(_SERVER)
    made: _Backend = embedded.EmbeddedServer(directory, cancel_grace=cancel_grace)
    return made


def _temporary_directory() -> Path:
    """In /tmp when the usual place cannot have a socket in it."""
    for parent in (None, "/tmp"):  # noqa: S108 - mkdtemp makes it private
        made = Path(tempfile.mkdtemp(prefix="opservice-testing-", dir=parent))
        if _SOCKET_DIRECTORY.fullmatch(str(made)):
            return made
        made.rmdir()
    raise RuntimeError("there is no temporary directory whose path a socket can have: set TMPDIR")


def _not_done(record: OperationRecord, timeout: timedelta) -> TimeoutError:
    operation, progress = record.operation, record.progress
    shown = f"operation {operation.id} ({operation.description})"
    text = f"{shown} is not done after {timeout.total_seconds():g} s"
    if record.HasField("progress"):
        text += f"; its progress: {progress.done} of {progress.total} {progress.unit}".rstrip()
    if record.HasField("cancel_requested_at"):
        text += "; it was cancelled, and its producer has not ended it yet"
    return TimeoutError(text)


_open: set[_Running] = set()
"""Those that serve, also when nobody has a reference to them any more."""


def _close_all() -> None:
    """Closes those that nobody has closed. Their producers first, which say how their operations ended."""
    try:
        if _open:
            sync.close_all()
    finally:
        for running in list(_open):
            running.close()


# The real server needs its pools of threads to end. When the interpreter ends, concurrent.futures ends them
# by the same function; of those that are registered the last is called first, and it was imported before.
# atexit comes later: with a Python without this function, a server that nobody has closed is left to it.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
