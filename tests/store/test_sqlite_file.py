"""The files of an SQLite database that are deleted or replaced while they are served from."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from opservice.domain.errors import StartupError, StoreFileLost
from opservice.domain.operation import DAY, DeleteExpired, Start, new_id
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore

Harm = Callable[[Path], object]


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.fixture
async def store(database: Database) -> AsyncIterator[OperationStore]:
    store = OperationStore(database, Repository())
    yield store
    await store.close()


@pytest.fixture
def file(database: Database) -> Path:
    return Path(database.url.file)


def delete(file: Path) -> None:
    file.unlink()


def delete_log(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


def delete_index(file: Path) -> None:
    file.with_name(f"{file.name}-shm").unlink()


def move_away(file: Path) -> None:
    file.rename(file.with_name("elsewhere.db"))


def move_directory(file: Path) -> None:
    file.parent.rename(file.parent.with_name("elsewhere"))


def replace(file: Path) -> None:
    copy = file.with_name("copy.db")
    shutil.copy(file, copy)
    copy.rename(file)


def empty(file: Path) -> None:
    file.write_bytes(b"")


HARMS = (delete, delete_log, delete_index, move_away, move_directory, replace, empty)


@pytest.mark.parametrize("harm", HARMS)
async def test_no_write_is_acknowledged_once_a_file_is_lost(
    store: OperationStore, file: Path, harm: Harm
) -> None:
    await store.apply(Start(new_id(), DAY))
    harm(file)
    with pytest.raises(StoreFileLost):
        await store.apply(Start(new_id(), DAY))


async def test_a_write_that_commits_into_a_lost_file_is_not_acknowledged(
    database: Database, file: Path
) -> None:
    with pytest.raises(StoreFileLost):
        database.write(lambda _: delete(file))


async def test_sweeps_notice_a_lost_file_and_then_nothing_is_read(
    store: OperationStore, file: Path
) -> None:
    id_ = (await store.apply(Start(new_id(), DAY))).record.id
    await store.get(id_)
    delete(file)
    with pytest.raises(StoreFileLost):
        await store.sweep(DeleteExpired(1))
    with pytest.raises(StoreFileLost):
        await store.get(id_)


async def test_a_lost_file_stays_lost_when_another_takes_its_place(
    store: OperationStore, file: Path
) -> None:
    await store.apply(Start(new_id(), DAY))
    move_away(file)
    with pytest.raises(StoreFileLost):
        await store.apply(Start(new_id(), DAY))
    file.with_name("elsewhere.db").rename(file)
    with pytest.raises(StoreFileLost):
        await store.apply(Start(new_id(), DAY))


def test_it_is_told_once_that_a_file_is_lost(database: Database, file: Path) -> None:
    told: list[str] = []
    database.driver.when_lost(lambda: told.append("lost"))
    database.read(lambda _: None)
    delete(file)
    for _ in range(2):
        with pytest.raises(StoreFileLost):
            database.read(lambda _: None)
    assert told == ["lost"]


def test_a_database_that_was_closed_opens_the_files_that_are_there_then(
    database: Database, file: Path
) -> None:
    database.read(lambda _: None)
    database.close()
    assert not file.with_name(f"{file.name}-wal").exists()
    database.read(lambda _: None)


def test_no_connection_makes_a_file_in_the_place_of_a_lost_one(
    database: Database, file: Path
) -> None:
    database.read(lambda _: None)  # the writer has not been connected yet
    delete(file)
    with pytest.raises(StoreFileLost):
        database.write(lambda _: None)
    assert not file.exists()


def test_who_does_not_create_a_database_is_refused_where_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "operations.db"
    with pytest.raises(StartupError, match=f"the database file does not exist: {file}"):
        open_database(f"sqlite:///{file}", create=False)
    assert not file.exists()


def test_any_name_of_a_file_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "50% of #1 ?mode=ro & é.db"
    with closing(open_database(f"sqlite:///{quote(str(file))}")) as opened:
        opened.write(lambda c: c.exec_driver_sql("CREATE TABLE made (id)"))
    assert file.stat().st_size > 0


def test_a_path_may_begin_with_two_slashes(tmp_path: Path) -> None:
    with closing(open_database(f"sqlite:////{tmp_path}/operations.db")) as opened:
        opened.read(lambda _: None)
    assert (tmp_path / "operations.db").stat().st_size > 0


def test_the_working_directory_need_not_be_named_in_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / os.fsdecode(b"\xff")
    directory.mkdir()
    monkeypatch.chdir(directory)
    with closing(open_database("sqlite:///operations.db")) as opened:
        opened.read(lambda _: None)
    assert (directory / "operations.db").stat().st_size > 0
