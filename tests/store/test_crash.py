"""What was acknowledged is there after the process, or the database server, is killed under load."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from opservice.domain.operation import Cancel, Complete, Fail, Record
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from opservice.store.repository import Repository
from opservice.store.schema import operations
from store import writer
from support.postgres import PostgresServer

PATIENCE = 60.0

KILLS = pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])


class Writer:
    """The program, writing to the database until it is killed."""

    def __init__(self, url: str, directory: Path) -> None:
        self._output = directory / f"acknowledged-{time.monotonic_ns()}"
        self._errors = self._output.with_suffix(".errors")
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            command = [sys.executable, writer.__file__, url]
            self._process = subprocess.Popen(command, stdout=output, stderr=errors)

    def acknowledged(self) -> dict[str, str]:
        """The last acknowledged state of each operation."""
        lines = self._output.read_text().splitlines(keepends=True)
        return dict(line.split() for line in lines if line.endswith("\n"))

    def wait_for_more(self, count: int = 100) -> None:
        """Until it has written some, and then for a random moment."""
        wanted = len(self.acknowledged()) + count
        deadline = time.monotonic() + PATIENCE
        while len(self.acknowledged()) < wanted:
            assert self._process.poll() is None, self._errors.read_text()
            assert time.monotonic() < deadline, self._errors.read_text()
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.05))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._errors.read_text() == ""


def read_all(database: Database, ids: list[str]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for first in range(0, len(ids), 500):
        some = ids[first : first + 500]
        found |= database.read(lambda c, some=some: Repository().find(c, some))  # type: ignore[misc]
    return found


def is_in_state(record: Record, state: str) -> bool:
    if state == "running":
        return True  # its end may have been written and not yet acknowledged
    command = writer.endings(record.id)[state]
    if isinstance(command, Complete):
        result: tuple[bytes | None, bytes | None] = (command.response, None)
    else:
        assert isinstance(command, Fail | Cancel)
        result = (None, command.error.status)
    return record.done and record.revision == 2 and (record.response, record.error) == result


def assert_all_is_there(url: str, acknowledged: dict[str, str]) -> None:
    assert acknowledged
    database = open_database(url)
    found = read_all(database, list(acknowledged))
    assert [id_ for id_ in acknowledged if id_ not in found] == []
    assert [id_ for id_, state in acknowledged.items() if not is_in_state(found[id_], state)] == []
    database.close()


def assert_no_batch_is_there_in_part(url: str) -> None:
    database = open_database(url)
    query = select(func.count(operations.c.id)).group_by(operations.c.parent)
    sizes = database.read(lambda connection: set(connection.execute(query).scalars()))
    assert sizes == {writer.STARTS_IN_A_BATCH}
    database.close()


@KILLS
def test_what_a_killed_process_acknowledged_is_there(
    database_url: str, tmp_path: Path, kills: int
) -> None:
    acknowledged: dict[str, str] = {}
    for _ in range(kills):
        running = Writer(database_url, tmp_path)
        running.wait_for_more()
        running.kill()
        acknowledged |= running.acknowledged()
        assert_all_is_there(database_url, acknowledged)
    assert_no_batch_is_there_in_part(database_url)


@KILLS
def test_what_was_acknowledged_before_and_after_the_database_server_was_killed_is_there(
    own_postgres: PostgresServer, tmp_path: Path, kills: int
) -> None:
    url = own_postgres.create_database()
    database = open_database(url)
    migrate(database)
    database.close()
    running = Writer(url, tmp_path)
    for _ in range(kills):
        running.wait_for_more()
        own_postgres.kill()
        own_postgres.start()
        assert_all_is_there(url, running.acknowledged())
    running.wait_for_more()
    running.kill()
    assert_all_is_there(url, running.acknowledged())
    assert_no_batch_is_there_in_part(url)
