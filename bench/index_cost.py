"""What the index by change (migration 0004) costs writes: the same ones with it and without it, by turns.

    .venv/bin/python bench/index_cost.py sqlite:////tmp/index.db
    .venv/bin/python bench/index_cost.py postgresql://...        # an empty database

Writes as the store does, without a server, into a table of 100,000 operations: transactions of so many
Starts, of Renews of the same operations, and of Completes. Each pair is of equal work, one after the other,
and the one that comes first changes from pair to pair.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median

from sqlalchemy import text

from opservice.domain.operation import DAY, SECOND, Command, Complete, Renew, Start, new_id
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from opservice.store.repository import Repository
from opservice.store.schema import operations
from served import fill

(INDEX,) = (index for index in operations.indexes if index.name == "operations_by_change")
KINDS: dict[str, list[Callable[[str], Command]]] = {
    "Start+Complete": [lambda id_: Start(id_, DAY, parent="bench"), lambda id_: Complete(id_, b"")],
    "the same, with a lease": [
        lambda id_: Start(id_, DAY, parent="bench", lease=60 * SECOND),
        lambda id_: Complete(id_, b""),
    ],
    "Start+10 Renews+Complete": [
        lambda id_: Start(id_, DAY, parent="bench"),
        *[Renew] * 10,
        lambda id_: Complete(id_, b""),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--operations", type=int, default=2_000, help="of each half of a pair")
    parser.add_argument("--batch", type=int, default=50, help="commands of a transaction")
    options = parser.parse_args()
    database = open_database(options.url)
    migrate(database)
    fill(database)
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    rates: defaultdict[tuple[str, bool], list[float]] = defaultdict(list)
    for pair in range(options.pairs):
        for kind, commands in KINDS.items():
            for indexed in (True, False) if pair % 2 else (False, True):
                prepare(database, indexed=indexed)
                took = write(database, commands, options.operations, options.batch)
                rates[kind, indexed].append(options.operations / took)
            ratios[kind].append(rates[kind, True][-1] / rates[kind, False][-1])
    print(f"{'':26} {'with':>8} {'without':>8}   with / without: median, least, most")
    for kind, those in ratios.items():
        with_, without = (median(rates[kind, indexed]) for indexed in (True, False))
        spread = f"{median(those):.2f}, {min(those):.2f}, {max(those):.2f}"
        print(f"{kind:26} {with_:8.0f} {without:8.0f}   {spread}")
    database.close()


def prepare(database: Database, *, indexed: bool) -> None:
    """Makes the index or drops it, and leaves nothing of that to be done meanwhile."""
    with database.writer.begin() as connection:
        # PostgreSQL's vacuum may have the table locked.
        database.driver.lift_time_limits(connection)
        (INDEX.create if indexed else INDEX.drop)(connection, checkfirst=True)
    with database.reader.connect() as connection:
        if database.url.is_sqlite:
            database.driver.checkpoint(connection)
        else:
            connection.execute(text("CHECKPOINT"))


def write(
    database: Database, steps: list[Callable[[str], Command]], count: int, batch: int
) -> float:
    """The seconds that it takes to lead so many new operations through the steps."""
    repository = Repository()
    began = time.perf_counter()
    for _ in range(count // batch):
        ids = [new_id() for _ in range(batch)]
        for step in steps:
            commands = [step(id_) for id_ in ids]
            database.write(partial(repository.apply, commands=commands))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
