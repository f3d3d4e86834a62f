"""Copies of an SQLite database, and how much of it stands in the file itself."""

from __future__ import annotations

import asyncio
import shutil
import stat
from contextlib import closing
from pathlib import Path

import pytest

from opservice.background.housekeeping import keep_checkpointing
from opservice.domain.errors import BackupFailed
from opservice.domain.operation import DAY, Start, new_id
from opservice.store.drivers.sqlite.backup import back_up_file
from opservice.store.drivers.sqlite.dbapi import dbapi
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from store.conftest import Ops

PATIENCE = 30


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.fixture
def file(database: Database) -> Path:
    return Path(database.url.file)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "backups"
    directory.mkdir()
    return directory / "backup.db"


@pytest.fixture
def ops(database: Database) -> Ops:
    return Ops(database, Repository())


def ids_in(file: Path) -> set[str]:
    with closing(dbapi.connect(str(file))) as connection:
        return {id_ for (id_,) in connection.execute("SELECT id FROM operations")}


def test_a_backup_is_one_file_with_all_that_was_committed(
    ops: Ops, file: Path, target: Path
) -> None:
    ids = {ops.start(metadata=b"\0" * 5000).id for _ in range(20)}
    made = back_up_file(file, target, overwrite=False)
    assert made.operations == 20
    assert made.bytes == target.stat().st_size
    assert ids_in(target) == ids
    assert list(target.parent.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_backup_is_served_from_like_the_database(ops: Ops, file: Path, target: Path) -> None:
    id_ = ops.start().id
    back_up_file(file, target, overwrite=False)
    restored = open_database(f"sqlite:///{target}")
    served = Ops(restored, Repository())
    assert served.get(id_).id == id_
    served.start()
    restored.close()
    assert len(ids_in(target)) == 2


def test_an_existing_file_is_overwritten_only_when_asked_for(
    ops: Ops, file: Path, target: Path
) -> None:
    ops.start()
    target.write_text("precious")
    with pytest.raises(BackupFailed, match="--force"):
        back_up_file(file, target, overwrite=False)
    assert target.read_text() == "precious"
    assert back_up_file(file, target, overwrite=True).operations == 1
    assert len(ids_in(target)) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("operations.db", "is there"),
        ("nowhere/backup.db", "does not exist"),
        ("link.db", "no regular file"),
        ("directory", "no regular file"),
    ],
)
def test_a_place_where_a_backup_would_do_harm_is_refused(
    ops: Ops, file: Path, name: str, reason: str
) -> None:
    id_ = ops.start().id
    file.with_name("link.db").symlink_to(file)
    file.with_name("directory").mkdir()
    with pytest.raises(BackupFailed, match=reason):
        back_up_file(file, file.parent / name, overwrite=True)
    assert ops.get(id_).id == id_


def test_the_database_of_a_stopped_server_is_not_overwritten_by_its_backup(
    database: Database, ops: Ops, file: Path
) -> None:
    ops.start()
    database.close()
    with pytest.raises(BackupFailed, match="the database itself"):
        back_up_file(file, file, overwrite=True)


@pytest.mark.parametrize("content", [b"", b"no database, but long enough to look like one" * 100])
def test_what_is_no_database_of_opservice_makes_no_backup(
    tmp_path: Path, target: Path, content: bytes
) -> None:
    file = tmp_path / "other.db"
    file.write_bytes(content)
    with pytest.raises(BackupFailed):
        back_up_file(file, target, overwrite=False)
    assert not list(target.parent.iterdir())


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, target: Path) -> None:
    with pytest.raises(BackupFailed, match="no database"):
        back_up_file(tmp_path / "missing.db", target, overwrite=False)
    assert not (tmp_path / "missing.db").exists()


def test_a_damaged_database_makes_no_backup(
    database: Database, ops: Ops, file: Path, target: Path
) -> None:
    for _ in range(50):
        ops.start(metadata=b"x" * 5000)
    database.close()
    content = bytearray(file.read_bytes())
    content[4096 * 2 : 4096 * 20] = b"\xff" * (4096 * 18)
    file.write_bytes(content)
    with pytest.raises(BackupFailed):
        back_up_file(file, target, overwrite=False)
    assert not list(target.parent.iterdir())


async def test_the_database_file_alone_soon_holds_what_was_written(
    database: Database, file: Path, tmp_path: Path
) -> None:
    store = OperationStore(database, Repository())
    id_ = (await store.apply(Start(new_id(), DAY))).record.id
    await store.get(id_)
    checkpoints = asyncio.create_task(keep_checkpointing(store, 0.01))
    copy = tmp_path / "copy.db"
    async with asyncio.timeout(PATIENCE):
        while True:
            shutil.copy(file, copy)
            try:
                if ids_in(copy) == {id_}:
                    break
            except dbapi.Error:  # not even the table is there
                pass
            await asyncio.sleep(0.01)
    checkpoints.cancel()
    await store.close()
    assert not file.with_name(f"{file.name}-wal").exists()
