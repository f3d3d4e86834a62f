"""What every test may ask for: a PostgreSQL server, and a fresh database of either kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from support.postgres import PostgresServer

Backend = Literal["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def migrated_template(postgres: PostgresServer) -> str:
    """The name of a database to copy, since migrating each anew takes longer."""
    name = "migrated"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    database = open_database(postgres.url(name))
    migrate(database)
    database.close()
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture
def database_url(backend: Backend, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh database with the schema in it."""
    if backend == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        return postgres.create_database(request.getfixturevalue("migrated_template"))
    url = f"sqlite:///{tmp_path}/operations.db"
    database = open_database(url)
    migrate(database)
    database.close()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()
