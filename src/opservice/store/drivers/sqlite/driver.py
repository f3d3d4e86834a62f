"""The driver of SQLite: its connections, and what they are set to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from opservice.common.private_files import check_place as check_private_place
from opservice.common.private_files import make_private
from opservice.domain.errors import StartupError, StoreError, StoreFull, StoreUnavailable
from opservice.domain.operation import Origin, Record
from opservice.store.drivers.protocol import Lookup, Read, Retry, Run, connection_lost
from opservice.store.drivers.sqlite import sql as sql
from opservice.store.drivers.sqlite.dbapi import dbapi
from opservice.store.drivers.sqlite.fast_reads import SqliteReads
from opservice.store.drivers.sqlite.files import SqliteFiles
from opservice.store.drivers.sqlite.notifications import SqliteNotifications

FIRST_SOUND_VERSION = (3, 51, 3)
"""SQLite before this can corrupt a WAL database under concurrent connections."""

_CACHE_KIB = 65_536
"""Of SQLite's pages, where most are read."""

_GROUP_MODE = 0o060

_LOCK_WAIT_SECONDS = 5  # for the whole of SQLite


# https://www.sqlite.org/rescode.html, by the primary code in the name
_FULL = "SQLITE_FULL"
_UNAVAILABLE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN")


class SqliteDriver:
    """A database file and those beside it (-wal, -shm)."""

    embedded = True

    def __init__(
        self, file: str, readers: int, group: int | None = None, *, create: bool = True
    ) -> None:
        """With `create` the file is made here when it is not there.

        No connection makes it: one that is opened after the file was deleted must fail. The file and those
        beside it are kept from all users but this one and those of the group with the number `group`.

        Raises StartupError when there can be no database in that place, or, without `create`, when there is
        none.
        """
        try:
            _check_place(Path(file), create=create)
        except OSError as error:
            raise StartupError(f"the database cannot be used: {error.strerror}: {file}") from error
        check_private_place(Path(file))
        beside = [Path(f"{file}{suffix}") for suffix in ("-wal", "-shm")]

        def keep_private() -> None:
            for path in beside:
                make_private(path, group, _GROUP_MODE)

        make_private(Path(file), group, _GROUP_MODE, create=create)
        keep_private()
        self._files = SqliteFiles(file, keep_private)
        self.writer = self._engine(file, 1)
        # pysqlite's own BEGIN is deferred, and a deferred transaction that comes to write loses updates.
        event.listen(self.writer, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        self.reader = self._engine(file, readers)

    def _engine(self, file: str, pool_size: int) -> Engine:
        url = URL.create(
            "sqlite",
            database=Path(file).absolute().as_uri(),
            query={"uri": "true", "mode": "rw"},  # https://www.sqlite.org/uri.html
        )
        module: ModuleType = dbapi
        made = create_engine(
            url,
            module=module,
            pool_size=pool_size,
            max_overflow=0,
            connect_args={"timeout": _LOCK_WAIT_SECONDS},
            hide_parameters=True,  # payloads do not belong in a log
        )
        event.listen(made, "connect", _prepare)
        event.listen(made, "connect", lambda _connection, _record: self._files.connected())
        return made

    def unfit(self, connection: Connection) -> str | None:
        return None

    def lasting_fault(self, error: DBAPIError) -> str | None:
        """What is wrong with the file."""
        name = _error_name(error)
        return next((fault for code, fault in _BROKEN.items() if name.startswith(code)), None)

    def warnings(self, connection: Connection) -> list[str]:
        """A version of SQLite that can corrupt the file."""
        version = dbapi.sqlite_version
        if tuple(map(int, version.split("."))) >= FIRST_SOUND_VERSION:
            return []
        sound = ".".join(map(str, FIRST_SOUND_VERSION))
        danger = f"SQLite {version} can corrupt a database that several connections write"
        return [f"{danger} (fixed in {sound}): install the package pysqlite3"]

    def through_pooler(self, connection: Connection) -> bool:
        return False

    def retry(self, error: DBAPIError) -> Retry | None:
        self.check_files()  # no connection can be made to a file that is gone
        return Retry.CONNECTION if error.connection_invalidated else None

    def store_error(self, error: DBAPIError) -> StoreError:
        name = _error_name(error)
        if name.startswith(_FULL):
            return StoreFull()
        if name.startswith(_UNAVAILABLE) or connection_lost(error):
            return StoreUnavailable()
        return StoreError()

    def refuse_if_lost(self) -> None:
        self._files.refuse_if_lost()

    def check_files(self) -> None:
        self._files.check()

    def when_lost(self, tell: Callable[[], object]) -> None:
        self._files.when_lost = tell

    def limit_lock_waits(self, connection: Connection, milliseconds: int) -> None:
        """Nothing: a transaction that writes has the only lock from its beginning."""

    def lift_time_limits(self, connection: Connection) -> None:
        """Nothing: there are none."""

    def prove_write(self, connection: Connection) -> None:
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version={int(version)}")

    def checkpoint(self, connection: Connection) -> None:
        """By itself SQLite does so only at each 4 MiB, and when the last connection is closed."""
        connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").one()

    def fast_reads(self, records: Lookup[Record], origins: Lookup[Origin]) -> SqliteReads:
        return SqliteReads(self._connect_without_waiting, records, origins)

    def notifications(self, read: Read, run: Run) -> SqliteNotifications:
        return SqliteNotifications(self, run)

    async def shut_down_frozen(self, seconds: float) -> int:
        return 0

    def close(self) -> None:
        self.writer.dispose()
        self.reader.dispose()
        self._files.closed()

    def _connect_without_waiting(self) -> Connection:
        """A connection outside the pool, on which a statement fails rather than waits for a lock."""
        connection = self.reader.connect()
        connection.detach()
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
        connection.exec_driver_sql(f"PRAGMA cache_size=-{_CACHE_KIB}")
        return connection


def _check_place(file: Path, *, create: bool) -> None:
    """Raises StartupError with what SQLite would call "unable to open database file"."""
    if not create and not file.exists():
        raise StartupError(f"the database file does not exist: {file}")
    if not file.parent.is_dir():
        raise StartupError(f"the directory of the database does not exist: {file.parent}")
    if file.is_dir():
        raise StartupError(f"the database is a directory, not a file: {file}")
    if file.exists() and not file.is_file():
        raise StartupError(f"the database is no regular file: {file}")
    # SQLite makes two more files beside it.
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise StartupError(f"the directory of the database may not be written to: {file.parent}")
    if file.exists() and not os.access(file, os.R_OK | os.W_OK):
        raise StartupError(f"the database may not be read and written: {file}")


_BROKEN = {
    "SQLITE_NOTADB": "it is not an SQLite database",
    "SQLITE_CORRUPT": "the file is damaged",
    "SQLITE_READONLY": "it may not be written to",
    "SQLITE_CANTOPEN": "SQLite cannot open it, or the files -wal and -shm beside it",
}


def _error_name(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlite_errorname", "")


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    _switch_to_wal(connection)
    for pragma in (
        # NORMAL may lose acknowledged commits when the power fails.
        "synchronous=FULL",
        f"journal_size_limit={64 << 20}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # opens the files beside it


def _switch_to_wal(connection: Any) -> None:
    """Of several that open a new file at the same time; here SQLite does not wait for its lock."""
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except dbapi.OperationalError as error:
            busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise StartupError("SQLite cannot use WAL there: is it a network file system?")
            return
