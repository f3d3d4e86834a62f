"""SQLite: its engines, and what a connection is set to."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from opservice.common.private_files import check_place as check_private_place
from opservice.common.private_files import make_private
from opservice.domain.errors import StartupError
from opservice.store.drivers.sqlite_file import SqliteFiles

try:
    import pysqlite3.dbapi2 as dbapi
except ImportError:  # no wheel for this platform
    dbapi = sqlite3

__all__ = [
    "CACHE_KIB",
    "FIRST_SOUND_VERSION",
    "dbapi",
    "engines",
    "lasting_fault",
    "warnings",
]

FIRST_SOUND_VERSION = (3, 51, 3)
"""SQLite before this can corrupt a WAL database under concurrent connections."""

CACHE_KIB = 65_536
"""Of SQLite's pages, where most are read."""

_GROUP_MODE = 0o060

_LOCK_WAIT_SECONDS = 5  # for the whole of SQLite


def engines(
    file: str, readers: int, group: int | None = None, *, create: bool = True
) -> tuple[Engine, Engine, SqliteFiles]:
    """A writer and a reader, which connect to nothing yet, and the files that they will open.

    With `create` the file is made here when it is not there. No connection makes it: one that is opened after
    the file was deleted must fail. The file and those beside it are kept from all users but this one and
    those of the group with this number.

    Raises StartupError when there can be no database in that place, or, without `create`, when there is none.
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
    url = URL.create(
        "sqlite",
        database=Path(file).absolute().as_uri(),
        query={"uri": "true", "mode": "rw"},  # https://www.sqlite.org/uri.html
    )
    module: ModuleType = dbapi
    files = SqliteFiles(file, keep_private)

    def engine(pool_size: int) -> Engine:
        made = create_engine(
            url,
            module=module,
            pool_size=pool_size,
            max_overflow=0,
            connect_args={"timeout": _LOCK_WAIT_SECONDS},
            hide_parameters=True,  # payloads do not belong in a log
        )
        event.listen(made, "connect", _prepare)
        event.listen(made, "connect", lambda _connection, _record: files.connected())
        return made

    writer = engine(1)
    # pysqlite's own BEGIN is deferred, and a deferred transaction that comes to write loses updates.
    event.listen(writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return writer, engine(readers), files


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


def lasting_fault(error: DBAPIError) -> str | None:
    """What is wrong with the file, when trying again would not help; else None."""
    name = getattr(error.orig, "sqlite_errorname", "")
    return next((fault for code, fault in _BROKEN.items() if name.startswith(code)), None)


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


def warnings() -> list[str]:
    """What an operator should know of how far this SQLite keeps its promises."""
    version = dbapi.sqlite_version
    if tuple(map(int, version.split("."))) >= FIRST_SOUND_VERSION:
        return []
    sound = ".".join(map(str, FIRST_SOUND_VERSION))
    danger = f"SQLite {version} can corrupt a database that several connections write"
    return [f"{danger} (fixed in {sound}): install the package pysqlite3"]
