"""Reads from SQLite on the event loop: one by one, since it answers at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from sqlalchemy import Connection
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import SQLAlchemyError

from opservice.domain.errors import OperationNotFound, OpserviceError
from opservice.domain.operation import Origin, Record
from opservice.store.drivers.fast_reads import CompiledQuery, FastConnection
from opservice.store.drivers.protocol import Found, Lookup


class SqliteReads(FastConnection[Connection]):
    """Locks are never waited for here."""

    _failures = (OpserviceError, SQLAlchemyError)

    def __init__(
        self,
        connect_without_waiting: Callable[[], Connection],
        records: Lookup[Record],
        origins: Lookup[Origin],
    ) -> None:
        super().__init__()
        self._connect_without_waiting = connect_without_waiting
        self._get = CompiledQuery(records.one, "operation_id", records, sqlite.dialect())
        self._get_origin = CompiledQuery(origins.one, "operation_id", origins, sqlite.dialect())

    def get(self, operation_id: str) -> Record | None:
        return self._ask(self._get, operation_id)

    def origin(self, operation_id: str) -> Origin | None:
        return self._ask(self._get_origin, operation_id)

    async def find(self, ids: Sequence[str]) -> None:
        """Nothing: `get` was asked before."""

    async def origins(self, ids: Sequence[str]) -> None:
        """Nothing."""

    def give_up(self) -> None:
        """Nothing: nobody waits for an answer here."""

    def _ask(self, query: CompiledQuery[Found], operation_id: str) -> Found | None:
        connection = self._connected()
        if connection is None:
            return None
        try:
            driver = connection.connection.dbapi_connection
            row = driver.execute(query.sql, query.values(operation_id)).fetchone()  # type: ignore[union-attr] # it is sqlite3's
            found = None if row is None else query.made(row)
        except Exception as error:  # noqa: BLE001 - the thread says it to whom it concerns
            self._disconnect(error)
            return None
        if found is None:
            raise OperationNotFound(operation_id)
        return found

    async def _open(self) -> Connection:
        return await asyncio.to_thread(self._connect_without_waiting)
