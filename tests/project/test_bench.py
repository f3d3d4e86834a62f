"""The benchmarks fill a database as its schema is now."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import growth
import listing
import served
import speed
from opservice.domain.filters import ListQuery
from opservice.store.engine import Database
from opservice.store.listing import read_page
from opservice.store.repository import Repository

ROWS = 20
FILLS: dict[str, Callable[[Database], object]] = {
    "growth": lambda database: growth.fill(database, 0, ROWS, 1),
    "listing": lambda database: listing.fill(database, ROWS),
    "served": lambda database: served.fill(database, done=ROWS - 5, running=5),
    "speed": lambda database: speed.fill(database, ROWS),
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_what_a_benchmark_fills_a_database_with_are_operations(
    database: Database, fill: Callable[[Database], object]
) -> None:
    fill(database)

    every = ListQuery(None, 2 * ROWS)
    page = database.read(lambda connection: read_page(connection, every, Repository().visible))
    assert len(page.records) == ROWS
