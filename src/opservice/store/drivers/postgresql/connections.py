"""The connections to PostgreSQL that are in use: has old ones replaced, and shuts down those that freeze.

A proxy or a NAT may forget a connection without closing it. Then whoever waits for an answer on it waits for
ever, while new connections would work.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

PROBE_SECONDS = 5
"""How long a new connection may take to tell which others PostgreSQL is at work for."""

_GENERATION = "opservice_generation"
_NEW = "opservice_new"
BACKEND = "SELECT pg_backend_pid()"
"""The number of PostgreSQL's process at the other end."""
_AT_WORK = """
SELECT pg_backend_pid(), ARRAY(
    SELECT pid FROM pg_stat_activity
    WHERE pid = ANY(%s) AND NOT coalesce(
        (state <> 'active' OR wait_event_type = 'Client')
        AND clock_timestamp() - state_change >= make_interval(secs => %s),
        false
    )
)
"""
"""https://www.postgresql.org/docs/current/monitoring-stats.html: those that wait for a client do nothing.

They do so between any two statements, too: only for how long tells that a connection is frozen. With
track_activities=off, and to another role than the one that connected, both columns are NULL.
"""


class HasSocket(Protocol):
    """A psycopg connection of either kind."""

    def fileno(self) -> int: ...


class Connections:
    """Those of a database's engines. Its methods may be called on any thread."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        """What psycopg is given for a connection: for those of the engines, and for others."""
        self._lock = threading.Lock()
        self._in_use: dict[int, tuple[psycopg.Connection, float]] = {}
        self.generation = object()
        """Another one when connections that were made before must not be used again."""

    def replace(self) -> None:
        """Has each connection that there is closed, and another made, before it is used the next time."""
        self.generation = object()

    def may_prepare(self) -> bool:
        """Whether statements may be prepared on connections that lead to PostgreSQL itself.

        Not behind a pooler: it may give each transaction another connection to PostgreSQL, where the name of
        a prepared statement is unknown, or (psycopg numbers them) that of another statement, which would be
        run. Without them writes take PostgreSQL twice the CPU time.
        """
        return self.arguments.get("prepare_threshold", 0) is not None

    def stop_preparing(self) -> None:
        """No connection prepares statements any more: those that there are get replaced."""
        self.arguments["prepare_threshold"] = None
        self.replace()

    def watch(self, engine: Engine) -> None:
        """Counts the engine's connections among these. Called before any other listener is added."""
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._taken)
        for name in ("checkin", "close", "invalidate"):
            event.listen(engine, name, self.forget)

    def forget(self, connection: psycopg.Connection | None, *_: object) -> None:
        """The connection is not in use any more, or closed."""
        with self._lock:
            self._in_use.pop(id(connection), None)

    async def shut_down_frozen(self, seconds: float) -> int:
        """Shuts down what has been in use for `seconds` and that PostgreSQL has done nothing for as long.

        Returns how many those were. Whoever waits on one is told that it was lost. What PostgreSQL is at work
        for is left alone, such as a COMMIT that waits for a standby, and so is what it does not tell of. A
        new connection is asked which those are: raises psycopg.Error when none can be made. Behind a pooler
        that cannot be known, and nothing is shut down.
        """
        before = time.monotonic() - seconds
        with self._lock:
            held = [
                (each.info.backend_pid, each, since)
                for each, since in self._in_use.values()
                if since <= before and not each.closed
            ]
        at_work = await _at_work(self.arguments, [process for process, *_ in held], seconds)
        if at_work is None:
            return 0
        # So that the pool closes none meanwhile, whose number becomes another's.
        with self._lock:
            frozen = [
                each
                for process, each, since in held
                # It may have gone on, and be used for something else by now.
                if process not in at_work and self._in_use.get(id(each)) == (each, since)
            ]
            if frozen:
                self.replace()
            for each in frozen:
                shut_down(each)
        return len(frozen)

    def _connected(self, connection: psycopg.Connection, record: Any) -> None:
        record.info[_GENERATION] = self.generation
        record.info[_NEW] = True
        with self._lock:
            self._in_use[id(connection)] = connection, time.monotonic()

    def _taken(self, connection: psycopg.Connection, record: Any, _proxy: object) -> None:
        # A new one is used once in any case: the pool gives up soon, with an error that nobody expects.
        new = record.info.pop(_NEW, False)
        if not new and record.info[_GENERATION] is not self.generation:
            raise DisconnectionError  # the pool makes another
        with self._lock:
            self._in_use[id(connection)] = connection, time.monotonic()


def through_pooler(connection: Any) -> bool:
    """Whether psycopg's connection, which is in no transaction, is not one to PostgreSQL itself.

    A pooler has one process of PostgreSQL for many clients, and tells each of them of a process that there
    is not, since it is by that number that a client cancels its own statement.
    """
    transactional = not connection.autocommit
    connection.autocommit = True
    (backend,) = connection.execute(BACKEND, prepare=False).fetchone()
    connection.autocommit = not transactional
    return bool(backend != connection.info.backend_pid)


async def through_pooler_async(connection: psycopg.AsyncConnection) -> bool:
    """The same, of a connection in autocommit that belongs to an event loop."""
    row = await (await connection.execute(BACKEND, prepare=False)).fetchone()
    return row is None or row[0] != connection.info.backend_pid


def shut_down(connection: HasSocket) -> None:
    """Ends a connection that another thread, or a coroutine, waits on: it is told that it was lost."""
    with (
        suppress(psycopg.Error, OSError),  # it has ended
        socket.socket(fileno=os.dup(connection.fileno())) as same,
    ):
        same.shutdown(socket.SHUT_RDWR)


@contextmanager
def shut_down_after(seconds: float, connection: HasSocket) -> Iterator[None]:
    """Shuts the connection down when what is done here takes longer. psycopg has no such time limit."""
    timer = asyncio.get_running_loop().call_later(seconds, shut_down, connection)
    try:
        yield
    finally:
        timer.cancel()


async def _at_work(
    arguments: Mapping[str, Any], processes: list[int], seconds: float
) -> set[int] | None:
    """In which of these processes PostgreSQL was at work in the last `seconds`, or does not tell.

    None behind a pooler. Raises psycopg.Error.
    """
    connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=True)
    with shut_down_after(PROBE_SECONDS, connection):
        async with connection:
            cursor = await connection.execute(_AT_WORK, [processes, seconds], prepare=False)
            row = await cursor.fetchone()
            assert row is not None
            backend, at_work = row
            return set(at_work) if backend == connection.info.backend_pid else None
