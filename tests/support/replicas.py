"""Databases that share nothing but the data, as those of separate server processes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from opservice.domain.errors import OpserviceError
from opservice.domain.operation import Command, Outcome, Record, Sweep
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository

Result = TypeVar("Result")

REPOSITORY = Repository()


class Replicas:
    """As many as are asked for, by their index."""

    def __init__(self, url: str, *, patient: bool = False) -> None:
        """Patient ones wait long for each other's locks: on a busy machine they may be held for long."""
        self._url = url
        if patient and not url.startswith("sqlite"):
            self._url += "?options=-c%20lock_timeout=10s"
        self._databases: list[Database] = []

    def __getitem__(self, index: int) -> Database:
        while len(self._databases) <= index:
            database = open_database(self._url)
            # Connecting takes longer than what is raced.
            database.read(lambda connection: None)
            database.write(lambda connection: None)
            self._databases.append(database)
        return self._databases[index]

    def close(self) -> None:
        for database in self._databases:
            database.close()

    def race(self, *contenders: Callable[[Database], Result]) -> list[Result]:
        """What each came to: all released together, each on a replica of its own."""
        databases = [self[index] for index in range(len(contenders))]
        barrier = Barrier(len(contenders))

        def run(contender: Callable[[Database], Result], database: Database) -> Result:
            barrier.wait()
            # Whoever the barrier wakes first should not always win.
            time.sleep(random.choice((0, 0, random.uniform(0, 0.002))))
            return contender(database)

        with ThreadPoolExecutor(len(contenders)) as threads:
            return list(threads.map(run, contenders, databases))

    def agreed(self, operation_id: str) -> Record | None:
        """The operation, which two replicas see alike."""
        first, second = (find(self[index], operation_id) for index in range(2))
        assert first == second
        return first

    def agreed_record(self, operation_id: str) -> Record:
        record = self.agreed(operation_id)
        assert record is not None
        return record


def apply(
    database: Database, *commands: Command, repository: Repository = REPOSITORY
) -> list[Outcome | OpserviceError]:
    return database.write(lambda connection: repository.apply(connection, commands))


def apply_one(database: Database, command: Command, repository: Repository = REPOSITORY) -> Outcome:
    """What the command came to, which must not be a refusal."""
    (outcome,) = apply(database, command, repository=repository)
    assert isinstance(outcome, Outcome), outcome
    return outcome


def sweep(
    database: Database, command: Sweep, repository: Repository = REPOSITORY
) -> tuple[str, ...]:
    return database.write(
        lambda connection: repository.sweep(
            connection, command, repository.read_clock(connection)[0]
        )
    ).ids


def find(
    database: Database, operation_id: str, repository: Repository = REPOSITORY
) -> Record | None:
    found = database.read(lambda connection: repository.find(connection, [operation_id]))
    return found.get(operation_id)
