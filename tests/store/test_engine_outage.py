"""A PostgreSQL server that goes away and comes back, under the same open Database."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from opservice.domain.errors import StoreUnavailable
from opservice.domain.operation import DAY, Complete, Start, new_id
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from support.postgres import PostgresServer
from support.replicas import apply_one, find

Ending = Callable[[PostgresServer], None]


@pytest.fixture
def database(own_postgres: PostgresServer) -> Iterator[Database]:
    opened = open_database(own_postgres.create_database())
    migrate(opened)
    yield opened
    opened.close()


ENDINGS = pytest.mark.parametrize(
    "end",
    [pytest.param(PostgresServer.stop, marks=pytest.mark.slow), PostgresServer.kill],
    ids=["stopped", "killed"],
)


@ENDINGS
def test_a_server_that_is_down_is_unavailable_and_works_again_once_it_is_up(
    own_postgres: PostgresServer, database: Database, end: Ending
) -> None:
    before = apply_one(database, Start(new_id(), DAY)).record
    assert find(database, before.id) == before
    end(own_postgres)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            find(database, before.id)
        with pytest.raises(StoreUnavailable):
            apply_one(database, Complete(before.id, b"answer"))
    own_postgres.start()
    assert find(database, before.id) == before
    assert apply_one(database, Complete(before.id, b"answer")).changed


@ENDINGS
def test_a_restart_between_two_transactions_goes_unnoticed(
    own_postgres: PostgresServer, database: Database, end: Ending
) -> None:
    before = apply_one(database, Start(new_id(), DAY)).record
    assert find(database, before.id) == before
    end(own_postgres)
    own_postgres.start()
    assert find(database, before.id) == before
    assert apply_one(database, Complete(before.id, b"answer")).changed
