"""A server within another program's process, for that program's tests.

`opservice_client.testing` runs it, where this package is installed. It is the server as it is, on an SQLite
file and a Unix socket, but for one thing: its clock can be moved.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from opservice.domain.filters import ListQuery
from opservice.domain.operation import SECOND, Change, Record
from opservice.main.serve import prepare_database
from opservice.main.server import build_known_types, run, sweeps_of
from opservice.runtime.reload import read_files
from opservice.runtime.security import Security
from opservice.runtime.settings import Settings
from opservice.store.engine import Database
from opservice.store.listing import read_page
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from opservice.store.sql import clock_that_says

_MICROSECOND = timedelta(microseconds=1)
_SWEEP = SECOND // 4
_PAGE = 500


class EmbeddedServer:
    """Runs on an event loop of the program's. It takes no signals, and configures no logging.

    What is due is done within a quarter of a second, also right after the start: no lease is older than
    the server.
    """

    def __init__(self, directory: Path, *, cancel_grace: timedelta) -> None:
        """`directory` takes the database's files and the socket: it has to be private, and should be empty.

        Raises StartupError when the directory's path is too long for a socket, or has characters that
        a socket's address cannot have.
        """
        self.target = f"unix:{directory}/socket"
        self._settings = Settings.of(
            listen=self.target,
            http_listen="off",
            database=f"sqlite:///{directory}/operations.db",
            cancel_grace=cancel_grace // _MICROSECOND,
            restart_grace=0,
            housekeeping_interval=_SWEEP,
            drain=SECOND,
        )
        self._clock = _Clock()
        self._advancing = threading.Lock()
        self._repository = Repository(clock_that_says(self._clock.now))
        operations = self._settings.operations
        self._sweeps = sweeps_of(operations.cancel_grace, operations.resume_window)
        self._database: Database | None = None
        self._tell_gone: Callable[[Sequence[Change]], object] | None = None

    async def run(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serves until `stop` is set. `ready` is called once it does.

        Raises StartupError or StoreError when it cannot start, ComponentFailed when a part of it has failed.
        """
        settings = self._settings
        database = await asyncio.to_thread(prepare_database, settings.storage)
        self._database = database
        # Without memory: what is in there does not know that the clock was moved.
        store = OperationStore(database, self._repository, memory_bytes=0)
        loop = asyncio.get_running_loop()
        self._tell_gone = lambda ends: loop.call_soon_threadsafe(store.tell_gone, ends)
        await run(
            settings,
            database,
            Security(settings.security, read_files(settings.security)),
            build_known_types(settings.discovery),
            stop,
            lambda _line: ready(),
            store=store,
            owns_process=False,
        )

    def advance(self, by: timedelta) -> None:
        """Moves the clock on. What becomes due in that time is done when this returns, second by second.

        To be called while it serves, from any thread but the server's. Nothing else is written meanwhile.
        """
        assert self._database is not None
        assert self._tell_gone is not None
        with self._advancing:
            gone = self._advance(self._database, by // _MICROSECOND)
        # The feed of those who follow many looks for what has changed lately, and would not find these.
        self._tell_gone(gone)

    def _advance(self, database: Database, by: int) -> list[Change]:
        """Returns what was there before, and is not there any more."""
        start = self._clock.ahead
        end = start + by

        def work(connection: Any) -> list[Change]:
            before = [Change.end_of(record) for record in self._records(connection)]
            until = self._clock.real() + end
            for moment in sorted(self._due(connection, until)):
                self._clock.ahead = max(start, moment - self._clock.real())
                self._sweep(connection)
            self._clock.ahead = end
            self._sweep(connection)
            there = {record.id for record in self._records(connection)}
            return [each for each in before if each.id not in there]

        try:
            return database.write(work)
        finally:
            self._clock.ahead = end

    def _due(self, connection: Any, until: int) -> set[int]:
        """The seconds in which something becomes due of what runs now, up to that moment."""
        grace = self._settings.operations.cancel_grace
        moments: set[int] = set()
        for record in self._records(connection):
            cancelled = record.cancel_requested_at
            dues = (
                record.lease_expires_at,
                record.timeout_at,
                None if cancelled is None else cancelled + grace,
            )
            if not record.done:
                moments.update(-(-due // SECOND) * SECOND for due in dues if due is not None)
        return {moment for moment in moments if moment <= until}

    def _records(self, connection: Any) -> Iterator[Record]:
        query = ListQuery(parent=None, limit=_PAGE)
        while True:
            page = read_page(connection, query, self._repository.visible)
            yield from page.records
            if page.end is None:
                return
            query = ListQuery(parent=None, limit=_PAGE, after=page.end)

    def _sweep(self, connection: Any) -> None:
        for sweep in self._sweeps:
            swept = sweep.limit
            while swept == sweep.limit:
                clock, _ = self._repository.read_clock(connection)
                swept = len(self._repository.sweep(connection, sweep, clock).ids)


class _Clock:
    """The system's, moved on by as many microseconds as it is `ahead`."""

    def __init__(self) -> None:
        self.ahead = 0

    def now(self) -> int:
        """Microseconds since the epoch."""
        return self.real() + self.ahead

    @staticmethod
    def real() -> int:
        return time.time_ns() // 1000
