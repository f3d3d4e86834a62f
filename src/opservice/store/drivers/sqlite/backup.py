"""A copy of an SQLite database while others write it, by SQLite's backup API."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opservice.domain.errors import BackupFailed
from opservice.store.drivers.sqlite.dbapi import dbapi

_LOCK_WAIT_SECONDS = 5
_BESIDE = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds, and the size of its file."""

    operations: int
    bytes: int


def back_up_file(file: Path, target: Path, *, overwrite: bool) -> Backup:
    """Copies the database in `file`, as of one moment, to `target`, which has it whole or not at all.

    The copy is one file with mode 0600, checked and on the disk when this returns. Writers are not kept
    waiting. Not for a process that serves from the file. Raises BackupFailed.
    """
    _check_target(file, target, overwrite=overwrite)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".part", dir=target.parent
        )
        os.close(handle)
        partial = Path(name)
        try:
            operations = _copy(file, partial)
            _sync(partial)
            made = Backup(operations, partial.stat().st_size)
            _check_target(file, target, overwrite=overwrite)
            partial.rename(target)
            _sync(target.parent)
        finally:
            for beside in ("", *_BESIDE):
                Path(f"{name}{beside}").unlink(missing_ok=True)
    except dbapi.Error as error:
        raise BackupFailed(f"the database {file} cannot be backed up: {error}") from error
    except OSError as error:
        raise BackupFailed(f"the backup {target} cannot be written: {error.strerror}") from error
    return made


def _check_target(file: Path, target: Path, *, overwrite: bool) -> None:
    if not file.is_file():
        raise BackupFailed(f"there is no database to back up: {file}")
    if not target.parent.is_dir():
        raise BackupFailed(f"the directory of the backup does not exist: {target.parent}")
    for beside in _BESIDE:
        if Path(f"{target}{beside}").exists():
            raise BackupFailed(
                f"{target} is a database in use, or what is left of one: {target}{beside} is there"
            )
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise BackupFailed(f"the backup {target} is there and is no regular file")
    if target.exists():
        if target.samefile(file):
            raise BackupFailed(f"{target} is the database itself")
        if not overwrite:
            raise BackupFailed(f"{target} exists: give --force to overwrite it")


def _copy(file: Path, partial: Path) -> int:
    """Returns the number of operations."""
    # rw: it makes no new database, but may put in order what a killed server left.
    source_uri = f"{file.resolve().as_uri()}?mode=rw"
    with (
        closing(dbapi.connect(source_uri, uri=True, timeout=_LOCK_WAIT_SECONDS)) as source,
        closing(dbapi.connect(str(partial), isolation_level=None)) as copy,
    ):
        if not _value(source, "SELECT count(*) FROM sqlite_schema WHERE name = 'alembic_version'"):
            raise BackupFailed(f"{file} is not a database of opservice")
        # All at once: a backup in steps begins again whenever somebody writes in between.
        source.backup(copy)
        # The copy is to be one file; a server that opens it switches to WAL again.
        copy.execute("PRAGMA journal_mode=DELETE").fetchone()
        found = _value(copy, "PRAGMA quick_check(1)")
        if found != "ok":
            raise BackupFailed(f"the database {file} is damaged: {found}")
        return int(_value(copy, "SELECT count(*) FROM operations"))


def _value(connection: Any, query: str) -> Any:
    (value,) = connection.execute(query).fetchone()
    return value


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
