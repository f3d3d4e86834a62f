"""One driver for each kind of database. protocol.py says what a driver does.

Which driver a database needs is decided here, by its URL, and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

from opservice.domain.errors import BackupFailed
from opservice.store.drivers.postgresql.driver import PostgresqlDriver
from opservice.store.drivers.protocol import Driver
from opservice.store.drivers.sqlite.backup import Backup, back_up_file
from opservice.store.drivers.sqlite.driver import SqliteDriver
from opservice.store.urls import DatabaseUrl

__all__ = ["Backup", "Driver", "back_up", "open_driver"]


def open_driver(
    url: DatabaseUrl, *, readers: int, group: int | None = None, create: bool = True
) -> Driver:
    """The driver of the database; it connects to nothing yet.

    `readers` is the number of connections for reading. The group with the number `group` may use SQLite's
    files, too. With `create` an SQLite file is made when there is none.
    Raises StartupError when there can be no database in that place.
    """
    if url.is_sqlite:
        return SqliteDriver(url.file, readers, group, create=create)
    return PostgresqlDriver(url.parameters, readers)


def back_up(url: DatabaseUrl, target: Path, *, overwrite: bool) -> Backup:
    """Copies a database while others write to it, as of one moment; `target` has it whole or not at all.

    Raises BackupFailed, also for a database that has tools of its own for this.
    """
    if url.is_sqlite:
        return back_up_file(Path(url.file), target, overwrite=overwrite)
    raise BackupFailed(
        "a PostgreSQL database is backed up by PostgreSQL's own tools: pg_dump, or pg_basebackup with an"
        " archive of the WAL"
    )
