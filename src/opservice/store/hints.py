"""Hints of what other processes change: NOTIFY on PostgreSQL, `data_version` on SQLite.

They only make followers quicker. Nothing is lost with them: whoever follows also polls.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import methodcaller
from typing import LiteralString, Protocol, TypeVar

import psycopg
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from opservice.domain.errors import StoreUnavailable
from opservice.store.drivers.connections import PROBE_SECONDS, shut_down_after
from opservice.store.engine import Database, store_error

Result = TypeVar("Result")

_CHANNEL: LiteralString = "opservice_changes"
_MAX_PAYLOAD = 7_900
"""Bytes; PostgreSQL refuses a payload of 8,000 and more."""
LIFE_SIGN_SECONDS = 15
"""How long PostgreSQL may tell nothing until it is asked whether the connection lives."""

_SQLITE_TICK_SECONDS = 0.02
_DATA_VERSION = text("PRAGMA data_version")


class Run(Protocol):
    """Calls a function on a thread that may wait for the database."""

    async def __call__(self, function: Callable[[], Result], /) -> Result: ...


class Hints:
    """Gives hints to other processes on the database, and gets theirs.

    NOTIFY takes a lock on the whole instance while its transaction commits, so it is sent in a
    transaction of its own, which writes nothing and waits for no disk, and only for changes that somebody
    may be waiting for.
    """

    def __init__(self, database: Database, run: Run, *, notify: bool = True) -> None:
        """`run` runs what waits for the database on a thread; without `notify` there are no hints."""
        self._database = database
        self._run = run
        self._notify = notify
        # So that a process does not read again what it has just written itself.
        self._origin = secrets.token_hex(4)

    async def send(self, operation_ids: Iterable[str]) -> None:
        """Tells other processes that these operations have changed. Raises a StoreError."""
        if self._notify and not self._database.is_sqlite:
            await self._run(partial(self._send, [*_payloads(self._origin, operation_ids)]))

    def _send(self, payloads: Sequence[str]) -> None:
        for payload in payloads:
            notify = select(func.pg_notify(_CHANNEL, payload))
            self._database.read(methodcaller("execute", notify))

    def receive(self) -> AsyncGenerator[Sequence[str] | None]:
        """The ids of operations that another process changed, or None when any may have changed.

        Raises a StoreError when the connection is lost.
        """
        if not self._notify:
            return _nothing()
        if self._database.is_sqlite:
            return self._sqlite_commits()
        return self._postgresql_notifications()

    async def _sqlite_commits(self) -> AsyncGenerator[Sequence[str] | None]:
        """After every commit, this process's as well: SQLite does not tell them apart."""
        try:
            connection = await self._run(self._database.reader.connect)
            with connection:
                seen = None
                while True:
                    version = await self._run(partial(connection.scalar, _DATA_VERSION))
                    if version != seen:
                        seen = version
                        yield None
                    await asyncio.sleep(_SQLITE_TICK_SECONDS)
        except DBAPIError as error:
            raise store_error(error) from error

    async def _postgresql_notifications(self) -> AsyncGenerator[Sequence[str] | None]:
        try:
            async with await psycopg.AsyncConnection.connect(
                **self._database.connect_arguments, autocommit=True
            ) as connection:
                await _ask(connection, f"LISTEN {_CHANNEL}")
                yield None
                while True:
                    async for notification in connection.notifies(timeout=LIFE_SIGN_SECONDS):
                        origin, _, ids = notification.payload.partition(" ")
                        if origin != self._origin:
                            yield ids.split()
                    # A connection that was forgotten on its way tells nothing for ever.
                    await _ask(connection, "SELECT 1")
        except psycopg.Error as error:
            raise StoreUnavailable from error


async def _ask(connection: psycopg.AsyncConnection, statement: LiteralString) -> None:
    """Raises psycopg.Error, also when there is no answer in time."""
    with shut_down_after(PROBE_SECONDS, connection):
        await connection.execute(statement, prepare=False)


async def _nothing() -> AsyncGenerator[Sequence[str] | None]:
    await asyncio.Event().wait()
    yield None


def _payloads(origin: str, operation_ids: Iterable[str]) -> Iterator[str]:
    payload = origin
    for operation_id in operation_ids:
        if len(payload) + 1 + len(operation_id) > _MAX_PAYLOAD:
            yield payload
            payload = origin
        payload = f"{payload} {operation_id}"
    if payload != origin:
        yield payload
