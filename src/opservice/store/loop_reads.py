"""Reads on the event loop itself, on a connection of its own: waking a thread takes longer than a read.

What cannot be read so has no result, and is to be read by a thread, which says to whom it concerns what is
wrong; so is everything until the connection is there.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import psycopg
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from opservice.domain.errors import OperationNotFound, OpserviceError
from opservice.domain.operation import Origin, Record
from opservice.store.compiled import PostgresqlFind, SqliteGet
from opservice.store.drivers import postgresql
from opservice.store.drivers.connections import PROBE_SECONDS, shut_down_after
from opservice.store.engine import UNPREPARED_STATES, Database
from opservice.store.libpq import Line
from opservice.store.repository import Repository

log = structlog.stdlib.get_logger("opservice.store")

RECONNECT_SECONDS = 1
"""Between one attempt to connect and the next."""


class Closable(Protocol):
    def close(self) -> None: ...


Opened = TypeVar("Opened", bound=Closable)
Found = TypeVar("Found", Record, Origin)


class _LoopReads(ABC, Generic[Opened]):
    """A connection that is made in the background when there is none, and dropped when a read fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Opened | None = None
        self._generation: object = None
        self._connecting: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._closed = False

    def close(self) -> None:
        self._closed = True
        self._disconnect()

    @abstractmethod
    async def _open(self) -> Opened: ...

    def _connected(self) -> Opened | None:
        if self._connection is not None:
            if self._generation is self._database.connections.generation:
                return self._connection
            self._disconnect()
        if self._connecting is None and not self._closed:
            now = asyncio.get_running_loop().time()
            if now >= self._not_before:
                self._not_before = now + RECONNECT_SECONDS
                self._connecting = asyncio.create_task(self._connect())
        return None

    async def _connect(self) -> None:
        generation = self._database.connections.generation
        try:
            connection = await self._open()
        except (OpserviceError, SQLAlchemyError, psycopg.Error) as error:
            self._disconnect(error)
        else:
            self._connection, self._generation = connection, generation
            if self._closed:
                self._disconnect()
        finally:
            self._connecting = None

    def _disconnect(self, error: Exception | None = None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if error is not None:
            unprepared = getattr(error, "sqlstate", None) in UNPREPARED_STATES
            if unprepared and self._database.may_prepare():
                # Something between us and PostgreSQL that was not recognized has dropped it.
                self._database.stop_preparing()
            log.warning("reads go through a thread", cause=str(error))


class SqliteReads(_LoopReads[Connection]):
    """One by one, since SQLite answers at once. Locks are never waited for here."""

    def __init__(self, database: Database, repository: Repository) -> None:
        super().__init__(database)
        self._get = repository.compile_get()
        self._get_origin = repository.compile_get_origin()

    def get(self, operation_id: str) -> Record | None:
        """The operation, or None when it must be looked for by a thread. Raises OperationNotFound."""
        return self._ask(self._get, operation_id)

    def origin(self, operation_id: str) -> Origin | None:
        """The same."""
        return self._ask(self._get_origin, operation_id)

    def _ask(self, get: SqliteGet[Found], operation_id: str) -> Found | None:
        connection = self._connected()
        if connection is None:
            return None
        try:
            found = get(connection.connection.dbapi_connection, operation_id)
        except Exception as error:  # noqa: BLE001 - the thread says it to whom it concerns
            self._disconnect(error)
            return None
        if found is None:
            raise OperationNotFound(operation_id)
        return found

    async def _open(self) -> Connection:
        return await asyncio.to_thread(self._database.connect_without_waiting)


class PostgresqlReads(_LoopReads[Line]):
    """A batch at a time."""

    def __init__(self, database: Database, repository: Repository) -> None:
        super().__init__(database)
        self._find = repository.compile_find()
        self._find_origins = repository.compile_find_origins()
        self._turn = asyncio.Lock()

    async def find(self, ids: Sequence[str]) -> list[Record | Exception] | None:
        """For each id the operation or OperationNotFound; None when a thread must look for them."""
        return await self._ask(self._find, ids)

    async def origins(self, ids: Sequence[str]) -> list[Origin | Exception] | None:
        """The same."""
        return await self._ask(self._find_origins, ids)

    async def _ask(
        self, find: PostgresqlFind[Found], ids: Sequence[str]
    ) -> list[Found | Exception] | None:
        async with self._turn:
            line = self._connected()
            if line is None:
                return None
            try:
                rows = await find(line, [*set(ids)])
            except psycopg.Error as error:
                self._disconnect(error)
                return None
            except Exception:  # noqa: BLE001 - a row that cannot be read: the thread finds out which
                return None
        found = {row.id: row for row in rows}
        return [found.get(id_) or OperationNotFound(id_) for id_ in ids]

    def give_up(self) -> None:
        """Closes the connection, on which an answer takes too long: who waits for one has no result.

        The engines' connections may be no better, so that they are replaced.
        """
        self._disconnect()
        self._database.connections.replace()

    async def _open(self) -> Line:
        arguments = self._database.connect_arguments
        connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=True)
        with shut_down_after(PROBE_SECONDS, connection):
            try:
                prepares = (
                    self._database.may_prepare()
                    and not await postgresql.through_pooler_async(connection)
                )
            except BaseException:
                await connection.close()
                raise
            line = Line(connection)
            try:
                if prepares:
                    await self._find.prepare(line)
                    await self._find_origins.prepare(line)
            except BaseException:
                line.close()
                raise
            return line
