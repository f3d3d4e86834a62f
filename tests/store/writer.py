"""A program for test_crash.py: changes operations until it is killed, and prints what is durable.

    writer.py DATABASE_URL

Each line is an id and the state that it was acknowledged in, by whoever wrote it last.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from threading import Lock, Thread

from opservice.domain.errors import OpserviceError, StoreUnavailable
from opservice.domain.operation import (
    DAY,
    Cancel,
    Command,
    Complete,
    Fail,
    Failure,
    Outcome,
    Start,
    new_id,
)
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository

THREADS = 3
STARTS_IN_A_BATCH = 5

_repository = Repository()
_printing = Lock()


def endings(operation_id: str) -> dict[str, Command]:
    """By the state that each leaves. Each result names its operation, so that none is mistaken."""
    text = operation_id.encode()
    return {
        "completed": Complete(operation_id, b"answer of " + text),
        "failed": Fail(operation_id, Failure(13, b"failure of " + text)),
        "cancelled": Cancel(operation_id, Failure(1, b"cancellation of " + text)),
    }


def batches() -> Iterator[list[tuple[str, str, Command]]]:
    """Starts some operations and ends those of the batch before: (id, state, command) of each."""
    running: list[str] = []
    while True:
        batch: list[tuple[str, str, Command]] = []
        for id_ in running:
            state, command = random.choice(list(endings(id_).items()))
            batch.append((id_, state, command))
        running = [new_id() for _ in range(STARTS_IN_A_BATCH)]
        # The parent tells which operations were started in one transaction.
        batch += [(id_, "running", Start(id_, DAY, parent=running[0])) for id_ in running]
        random.shuffle(batch)
        yield batch


def write(database: Database, commands: list[Command]) -> list[Outcome | OpserviceError]:
    while True:
        try:
            return database.write(lambda connection: _repository.apply(connection, commands))
        except StoreUnavailable:
            time.sleep(0.05)


def work(database: Database) -> None:
    for batch in batches():
        outcomes = write(database, [command for _, _, command in batch])
        assert all(isinstance(outcome, Outcome) for outcome in outcomes), outcomes
        with _printing:
            sys.stdout.write("".join(f"{id_} {state}\n" for id_, state, _ in batch))
            sys.stdout.flush()


def main() -> None:
    database = open_database(sys.argv[1])
    threads = [Thread(target=work, args=(database,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
