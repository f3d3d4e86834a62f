"""Opening a database, running transactions on it, and turning what drivers raise into our errors."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from opservice.errors import StartupError, StoreBusy, StoreError, StoreFull, StoreUnavailable

try:
    import pysqlite3.dbapi2 as _sqlite
except ImportError:  # no wheel for this platform
    _sqlite = sqlite3

Result = TypeVar("Result")

FIRST_SOUND_SQLITE = (3, 51, 3)
"""SQLite before this can corrupt a WAL database under concurrent connections."""

_LOCK_WAIT_SECONDS = 5  # for the whole of SQLite
_ROW_LOCK_WAIT_SECONDS = 2  # for an operation on PostgreSQL
_CONNECT_SECONDS = 5
_CACHE_KIB = 65_536  # of SQLite's pages, where most are read
_STATEMENT_SECONDS = 10
_SERIALIZATION_RETRIES = 8
_FIRST_BACKOFF_SECONDS = 0.005

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_SERIALIZATION_STATES = frozenset({"40001", "40P01"})
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

    url: URL
    writer: Engine
    reader: Engine
    connect_arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What psycopg is to be given for a connection beside those of the engines."""

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Runs `work` in one transaction, committed when this returns.

        It may run more than once: after a serialization failure or a deadlock, and once more when the
        connection is lost. A commit whose answer was lost may have happened, so `work` must be made of
        conditional statements that find out by reading whether they took effect before (those of
        the repository are).

        Raises StoreUnavailable, StoreFull, or StoreError for what nobody expected.
        """

        def transaction() -> Result:
            with self.writer.connect() as connection, connection.begin():
                return work(connection)

        return self._run(transaction)

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Runs `work` without a transaction: every statement sees all that was committed before it.

        Raises as `write` does.
        """

        def statement() -> Result:
            with self.reader.connect() as connection:
                return work(connection)

        return self._run(statement)

    def connect_without_waiting(self) -> Connection:
        """A connection of its own to SQLite, on which a statement fails rather than waits for a lock."""
        connection = self.reader.connect()
        connection.detach()
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
        connection.exec_driver_sql(f"PRAGMA cache_size=-{_CACHE_KIB}")
        return connection

    def close(self) -> None:
        self.writer.dispose()
        self.reader.dispose()

    def warnings(self) -> list[str]:
        """What an operator should know of how far this database keeps its promises."""
        if self.is_sqlite:
            version = _sqlite.sqlite_version
            if tuple(map(int, version.split("."))) >= FIRST_SOUND_SQLITE:
                return []
            sound = ".".join(map(str, FIRST_SOUND_SQLITE))
            danger = f"SQLite {version} can corrupt a database that several connections write"
            return [f"{danger} (fixed in {sound}): install the package pysqlite3"]
        return [
            f"PostgreSQL has {setting}=off: acknowledged operations may be lost in a crash"
            for setting in ("fsync", "full_page_writes", "synchronous_commit")
            if self.read(lambda c, s=setting: c.execute(text(f"SHOW {s}")).scalar_one()) == "off"  # type: ignore[misc]
        ]

    def _run(self, attempt: Callable[[], Result]) -> Result:
        retries, reconnected = 0, False
        while True:
            try:
                return attempt()
            except DBAPIError as error:
                if _sqlstate(error) == _READ_ONLY_STATE:
                    # After a failover the pool may still lead to what is now a standby.
                    self.close()
                if _sqlstate(error) in _SERIALIZATION_STATES and retries < _SERIALIZATION_RETRIES:
                    time.sleep(_FIRST_BACKOFF_SECONDS * 2**retries * random.uniform(0.5, 1))
                    retries += 1
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


def open_database(url: str, *, readers: int = 4) -> Database:
    """Makes the engines for a database URL; connects to nothing yet.

    Raises StartupError when the URL is not one of a durable SQLite file or of PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The cause may quote the password.
        raise StartupError(
            "the database URL does not parse: give sqlite:///FILE or"
            " postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from None
    match parsed.drivername:
        case "sqlite" | "sqlite+pysqlite":
            return _open_sqlite(parsed, readers)
        case "postgres" | "postgresql" | "postgresql+psycopg":
            return _open_postgresql(parsed.set(drivername="postgresql+psycopg"), readers)
        case other:
            raise StartupError(
                f"the database URL begins with {other}://; supported are sqlite:// and postgresql://"
            )


def _open_sqlite(url: URL, readers: int) -> Database:
    if url.host:
        raise StartupError("the database URL names a host: give sqlite:///FILE, with three slashes")
    file = url.database or ""
    in_memory = url.query.get("mode") == "memory" or url.query.get("vfs") == "memdb"
    if in_memory or file in ("", "file:") or ":memory:" in file:
        raise StartupError(
            "the database URL names no file: an in-memory SQLite would lose every operation;"
            " give sqlite:///FILE"
        )
    directory = Path(file).parent
    if not file.startswith("file:") and not directory.is_dir():
        raise StartupError(f"the directory of the database does not exist: {directory}")
    module: ModuleType = _sqlite

    def engine(pool_size: int) -> Engine:
        made = create_engine(
            url,
            module=module,
            pool_size=pool_size,
            max_overflow=0,
            connect_args={"timeout": _LOCK_WAIT_SECONDS},
            hide_parameters=True,  # payloads do not belong in a log
        )
        event.listen(made, "connect", _prepare_sqlite)
        return made

    writer = engine(1)
    # pysqlite's own BEGIN is deferred, and a deferred transaction that comes to write loses updates.
    event.listen(writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return Database(url, writer, engine(readers))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    _switch_to_wal(connection)
    for pragma in (
        # NORMAL may lose acknowledged commits when the power fails.
        "synchronous=FULL",
        f"journal_size_limit={64 << 20}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: Any) -> None:
    """Of several that open a new file at the same time; here SQLite does not wait for its lock."""
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except _sqlite.OperationalError as error:
            busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise StartupError("SQLite cannot use WAL there: is it a network file system?")
            return


def _open_postgresql(url: URL, readers: int) -> Database:
    session = " ".join(
        f"-c {setting}={seconds * 1000}"
        for setting, seconds in (
            ("statement_timeout", _STATEMENT_SECONDS),
            ("lock_timeout", _ROW_LOCK_WAIT_SECONDS),
            # A replica that stalls in mid-transaction must not hold its locks for long.
            ("idle_in_transaction_session_timeout", _STATEMENT_SECONDS),
        )
    )
    defaults: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "application_name": "opservice",
        "options": session,
        # Of several hosts, or behind a name that moves: the primary, never a standby.
        "target_session_attrs": "read-write",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
    }
    # What the operator wrote into the URL counts.
    arguments = {key: value for key, value in defaults.items() if key not in url.query}
    shared: dict[str, Any] = {
        "connect_args": arguments,
        "hide_parameters": True,
        "max_overflow": 0,
        "pool_timeout": _CONNECT_SECONDS,
    }
    writer = create_engine(url, pool_size=2, **shared)
    reader = create_engine(
        url, pool_size=readers, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, **shared
    )
    for engine in (writer, reader):
        event.listen(engine, "handle_error", _hide_rows)
    _, of_url = reader.dialect.create_connect_args(url)
    return Database(url, writer, reader, {**of_url, **arguments})


def _hide_rows(context: ExceptionContext) -> None:
    """PostgreSQL quotes a row that violates a constraint: payloads do not belong in a log."""
    diagnosis = getattr(context.original_exception, "diag", None)
    for quoted in (getattr(diagnosis, name, None) for name in ("message_detail", "context")):
        for error in (context.original_exception, context.sqlalchemy_exception):
            if quoted and error is not None:
                error.args = (str(error.args[0]).replace(quoted, "(hidden)"), *error.args[1:])
