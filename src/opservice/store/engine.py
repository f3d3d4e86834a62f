"""Opening a database, running transactions on it, and turning what drivers raise into our errors."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from opservice.domain.errors import StartupError, StoreBusy, StoreError, StoreFull, StoreUnavailable
from opservice.store.drivers import postgresql, sqlite
from opservice.store.drivers.connections import Connections
from opservice.store.drivers.sqlite_file import SqliteFiles
from opservice.store.urls import DatabaseUrl, parse_database_url

Result = TypeVar("Result")

_SERIALIZATION_RETRIES = 8
_FIRST_BACKOFF_SECONDS = 0.005

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_SERIALIZATION_STATES = frozenset({"40001", "40P01"})
UNPREPARED_STATES = frozenset({"26000", "42P05"})
"""A prepared statement is not there, or is there already: somebody else has used the connection."""
_READ_ONLY_STATE = "25006"
_BUSY_STATE = "55P03"
_FULL_STATES = frozenset({"53100"})
_UNAVAILABLE_STATES = frozenset({"25006", "57014", "57P01", "57P02", "57P03", "57P05"})
_UNAVAILABLE_CLASSES = frozenset({"08", "53"})

# https://www.sqlite.org/rescode.html, by the primary code in the name
_SQLITE_FULL = "SQLITE_FULL"
_SQLITE_UNAVAILABLE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN")


@dataclass(frozen=True)
class Database:
    """A writer whose transactions exclude one another on SQLite, and a reader in autocommit."""

    url: DatabaseUrl
    writer: Engine
    reader: Engine
    connect_arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    """What psycopg is given for a connection, those of the engines and others."""
    connections: Connections = field(default_factory=Connections)
    """Of the engines, on PostgreSQL."""
    files: SqliteFiles | None = None
    """Of SQLite: what tells whether they are still those that were opened."""

    @property
    def is_sqlite(self) -> bool:
        return self.url.is_sqlite

    def check_connections(self) -> None:
        """Connects as reader and as writer.

        Raises StartupError for what trying again would not mend, for an encoding that does not hold every
        text, and when time limits that the server relies on are not in force; StoreUnavailable for the rest.
        """
        for engine in (self.reader, self.writer):
            try:
                with engine.connect() as connection:
                    fault = None if self.is_sqlite else postgresql.unfit(connection)
                if fault is not None:
                    raise StartupError(f"the database {self.url.shown} cannot be used: {fault}")
            except DBAPIError as error:
                driver = sqlite if self.is_sqlite else postgresql
                fault = driver.lasting_fault(error)
                if fault is not None:
                    raise StartupError(
                        f"the database {self.url.shown} cannot be used: {fault}"
                    ) from error
                failed = store_error(error)
                if type(failed) is StoreUnavailable:
                    failed = StoreUnavailable(
                        f"The database {self.url.shown} is not available at the moment."
                    )
                raise failed from error

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Runs `work` in one transaction, committed when this returns.

        It may run more than once: after a serialization failure or a deadlock, and once more when the
        connection is lost. A commit whose answer was lost may have happened, so `work` must be made of
        conditional statements that find out by reading whether they took effect before (those of
        the repository are).

        Raises StoreUnavailable (StoreFileLost when SQLite's file is not there any more), StoreFull, or
        StoreError for what nobody expected.
        """

        def transaction() -> Result:
            with self.writer.connect() as connection, connection.begin():
                result = work(connection)
            self._check_files()  # before anybody is told that it is durable
            return result

        return self._run(transaction)

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Runs `work` without a transaction: every statement sees all that was committed before it.

        Raises as `write` does.
        """

        def statement() -> Result:
            self._check_files()
            with self.reader.connect() as connection:
                return work(connection)

        return self._run(statement)

    def connect_without_waiting(self) -> Connection:
        """A connection of its own to SQLite, on which a statement fails rather than waits for a lock."""
        connection = self.reader.connect()
        connection.detach()
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
        connection.exec_driver_sql(f"PRAGMA cache_size=-{sqlite.CACHE_KIB}")
        return connection

    def checkpoint(self) -> None:
        """Has SQLite copy what is in its log (-wal) into the database file, as far as readers let it.

        SQLite does so by itself only at each 4 MiB, and when the last connection is closed. Nobody is kept
        waiting. Nothing on PostgreSQL, which does it by itself. Raises as `read` does.
        """
        if self.is_sqlite:
            self.read(lambda c: c.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").one())

    def through_pooler(self) -> bool:
        """Whether something between the server and PostgreSQL shares connections out. Raises as `read`."""
        return not self.is_sqlite and self.read(
            lambda c: postgresql.through_pooler(c.connection.dbapi_connection)
        )

    def may_prepare(self) -> bool:
        """Whether statements may be prepared on connections that lead to PostgreSQL itself."""
        return postgresql.may_prepare(self.connect_arguments)

    def stop_preparing(self) -> None:
        """No connection prepares statements any more: those that there are get replaced."""
        self.connect_arguments["prepare_threshold"] = None
        self.connections.replace()

    async def shut_down_frozen(self, seconds: float) -> int:
        """How many connections were shut down that had been used for `seconds` and more, for nothing.

        Raises StoreUnavailable when no new connection can be made. None on SQLite.
        """
        if self.is_sqlite:
            return 0
        try:
            return await self.connections.shut_down_frozen(self.connect_arguments, seconds)
        except psycopg.Error as error:
            raise StoreUnavailable from error

    def close(self) -> None:
        self.connections.replace()
        self.writer.dispose()
        self.reader.dispose()
        if self.files is not None:
            self.files.closed()

    def refuse_if_lost(self) -> None:
        """Raises StoreFileLost when it was noticed that SQLite's file is gone; costs next to nothing."""
        if self.files is not None:
            self.files.refuse_if_lost()

    def when_lost(self, tell: Callable[[], object]) -> None:
        """Has `tell` called, on whatever thread, when it is noticed that SQLite's file is gone."""
        if self.files is not None:
            self.files.when_lost = tell

    def _check_files(self) -> None:
        if self.files is not None:
            self.files.check()

    def warnings(self) -> list[str]:
        """What an operator should know of how far this database keeps its promises."""
        if self.is_sqlite:
            return sqlite.warnings()
        return [
            f"PostgreSQL has {setting}=off: acknowledged operations may be lost in a crash"
            for setting in ("fsync", "full_page_writes", "synchronous_commit")
            if self.read(lambda c, s=setting: c.execute(text(f"SHOW {s}")).scalar_one()) == "off"  # type: ignore[misc]
        ]

    def _run(self, attempt: Callable[[], Result]) -> Result:
        retries, reconnected, unprepared = 0, False, False
        while True:
            self.refuse_if_lost()
            try:
                return attempt()
            except DBAPIError as error:
                self._check_files()  # no connection can be made to a file that is gone
                if _sqlstate(error) == _READ_ONLY_STATE:
                    # After a failover the pool may still lead to what is now a standby.
                    self.connections.replace()
                if _sqlstate(error) in _SERIALIZATION_STATES and retries < _SERIALIZATION_RETRIES:
                    time.sleep(_FIRST_BACKOFF_SECONDS * 2**retries * random.uniform(0.5, 1))
                    retries += 1
                elif _sqlstate(error) in UNPREPARED_STATES and not unprepared:
                    # Something between us and PostgreSQL that was not recognized has dropped it.
                    unprepared = True
                    self.stop_preparing()
                elif error.connection_invalidated and not reconnected:
                    reconnected = True
                else:
                    raise store_error(error) from error
            except PoolTimeout as error:
                raise StoreUnavailable from error
            except SQLAlchemyError as error:
                raise StoreError from error


def store_error(error: DBAPIError) -> StoreError:
    """Our error for a driver's. The driver's stays its cause, for the log, and out of the message."""
    state = _sqlstate(error)
    if state in _FULL_STATES:
        return StoreFull()
    if state == _BUSY_STATE:
        return StoreBusy()
    if state in _SERIALIZATION_STATES | _UNAVAILABLE_STATES or state[:2] in _UNAVAILABLE_CLASSES:
        return StoreUnavailable()
    name = getattr(error.orig, "sqlite_errorname", "")
    if name.startswith(_SQLITE_FULL):
        return StoreFull()
    if name.startswith(_SQLITE_UNAVAILABLE):
        return StoreUnavailable()
    if error.connection_invalidated or _never_connected(error):
        return StoreUnavailable()
    return StoreError()


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _never_connected(error: DBAPIError) -> bool:
    """psycopg raises an OperationalError without a state when it cannot reach the server."""
    return error.statement is None and type(error.orig).__name__ in {
        "OperationalError",
        "ConnectionTimeout",
    }


def open_database(
    url: str, *, readers: int = 4, group: int | None = None, create: bool = True
) -> Database:
    """Makes the engines for a database URL; connects to nothing yet.

    `group` may use SQLite's files, too; with `create` an SQLite file is made when there is none.
    Raises StartupError when the URL is not one of a durable SQLite file or of PostgreSQL.
    """
    parsed = parse_database_url(url)
    if parsed.is_sqlite:
        writer, reader, files = sqlite.engines(parsed.file, readers, group, create=create)
        return Database(parsed, writer, reader, files=files)
    arguments, connections = postgresql.connect_arguments(parsed.parameters), Connections()
    writer, reader = postgresql.engines(arguments, readers, connections)
    return Database(parsed, writer, reader, arguments, connections)
