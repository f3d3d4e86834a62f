"""SQLite: its engines, and what a connection is set to."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event

from opservice.errors import StartupError

try:
    import pysqlite3.dbapi2 as dbapi
except ImportError:  # no wheel for this platform
    dbapi = sqlite3

FIRST_SOUND_VERSION = (3, 51, 3)
"""SQLite before this can corrupt a WAL database under concurrent connections."""

CACHE_KIB = 65_536
"""Of SQLite's pages, where most are read."""

_LOCK_WAIT_SECONDS = 5  # for the whole of SQLite


def engines(url: URL, readers: int) -> tuple[Engine, Engine]:
    """A writer and a reader, which connect to nothing yet.

    Raises StartupError for a URL of no durable file.
    """
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
    module: ModuleType = dbapi

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
        return made

    writer = engine(1)
    # pysqlite's own BEGIN is deferred, and a deferred transaction that comes to write loses updates.
    event.listen(writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return writer, engine(readers)


def _prepare(connection: Any, _record: object) -> None:
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
