"""Reads from PostgreSQL on the event loop, a batch at a time, by libpq itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha256

import psycopg
from sqlalchemy.dialects.postgresql.base import PGDialect

from opservice.domain.errors import OperationNotFound
from opservice.domain.operation import Origin, Record
from opservice.store.drivers.fast_reads import CompiledQuery, FastConnection
from opservice.store.drivers.postgresql.connections import (
    PROBE_SECONDS,
    Connections,
    shut_down_after,
    through_pooler_async,
)
from opservice.store.drivers.postgresql.faults import UNPREPARED_STATES
from opservice.store.drivers.postgresql.libpq import LoopConnection
from opservice.store.drivers.protocol import Found, Lookup


class PostgresqlReads(FastConnection[LoopConnection]):
    """One batch is asked for at a time."""

    _failures = (psycopg.Error,)

    def __init__(
        self, connections: Connections, records: Lookup[Record], origins: Lookup[Origin]
    ) -> None:
        """Its connection is made and replaced as `connections` are."""
        super().__init__()
        self._connections = connections
        self._find = _Find(records)
        self._find_origins = _Find(origins)
        self._turn = asyncio.Lock()

    def get(self, operation_id: str) -> None:
        """Nothing: `find` can answer."""

    def origin(self, operation_id: str) -> None:
        """Nothing."""

    async def find(self, ids: Sequence[str]) -> list[Record | Exception] | None:
        return await self._ask(self._find, ids)

    async def origins(self, ids: Sequence[str]) -> list[Origin | Exception] | None:
        return await self._ask(self._find_origins, ids)

    def give_up(self) -> None:
        # The engines' connections may be no better.
        self._disconnect()
        self._connections.replace()

    async def _ask(self, find: _Find[Found], ids: Sequence[str]) -> list[Found | Exception] | None:
        async with self._turn:
            connection = self._connected()
            if connection is None:
                return None
            try:
                rows = await find(connection, [*set(ids)])
            except psycopg.Error as error:
                self._disconnect(error)
                return None
            except Exception:  # noqa: BLE001 - a row that cannot be read: the thread finds out which
                return None
        found = {row.id: row for row in rows}
        return [found.get(id_) or OperationNotFound(id_) for id_ in ids]

    def _generation(self) -> object:
        return self._connections.generation

    def _disconnect(self, error: Exception | None = None) -> None:
        super()._disconnect(error)
        unprepared = getattr(error, "sqlstate", None) in UNPREPARED_STATES
        if unprepared and self._connections.may_prepare():
            # Something between us and PostgreSQL that was not recognized has dropped it.
            self._connections.stop_preparing()

    async def _open(self) -> LoopConnection:
        connection = await psycopg.AsyncConnection.connect(
            **self._connections.arguments, autocommit=True
        )
        with shut_down_after(PROBE_SECONDS, connection):
            try:
                prepares = self._connections.may_prepare() and not await through_pooler_async(
                    connection
                )
            except BaseException:
                await connection.close()
                raise
            opened = LoopConnection(connection)
            try:
                if prepares:
                    await self._find.prepare(opened)
                    await self._find_origins.prepare(opened)
            except BaseException:
                opened.close()
                raise
            return opened


class _Find(CompiledQuery[Found]):
    """Finds operations by their ids, by a statement that is prepared once on each connection, or never."""

    def __init__(self, lookup: Lookup[Found]) -> None:
        # $1, as PostgreSQL itself writes a parameter
        dialect = PGDialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call] # SQLAlchemy's
        super().__init__(lookup.many, "operation_ids", lookup, dialect)
        self._statement = self.sql.encode()
        # Behind a pooler the name may be that of another version, whose rows are different.
        self._name = b"opservice_find_" + sha256(self._statement).hexdigest()[:16].encode()

    async def prepare(self, connection: LoopConnection) -> None:
        """Makes the calls on this connection cheaper. Raises a psycopg.Error."""
        await connection.prepare(self._name, self._statement)

    async def __call__(self, connection: LoopConnection, ids: Sequence[str]) -> list[Found]:
        """Raises a psycopg.Error."""
        return await connection.fetch(self._name, self._statement, self.values(ids), self.made)
