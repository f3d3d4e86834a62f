"""A server on each database, shared by the tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from opservice.store.engine import open_database
from support.client import Client
from support.postgres import PostgresServer
from support.server import ServerProcess, serving

SHARED_SETTINGS: dict[str, Any] = {
    "housekeeping_interval": "500ms",
    "restart_grace": "0s",
    "cancel_grace": "1h",
    "http_listen": "127.0.0.1:0",
}
"""Of a server that tests share."""


def empty_database(request: pytest.FixtureRequest, directory: Path) -> str:
    """The URL of a new database, of the kind that is the fixture's parameter."""
    if request.param == "sqlite":
        return f"sqlite:///{directory}/operations.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.create_database()


def execute(database_url: str, statement: str) -> None:
    """Runs a statement behind the server's back."""
    database = open_database(database_url)
    try:
        database.write(lambda connection: connection.execute(text(statement)))
    finally:
        database.close()


@contextmanager
def without_column(database_url: str, name: str) -> Iterator[None]:
    """Whoever asks for the column gets an error."""
    execute(database_url, f"ALTER TABLE operations RENAME COLUMN {name} TO taken_away")
    try:
        yield
    finally:
        execute(database_url, f"ALTER TABLE operations RENAME COLUMN taken_away TO {name}")


@contextmanager
def held_up_writes(database_url: str) -> Iterator[None]:
    """Lets no write end within the block; the server gives up after 5 s."""
    database = open_database(database_url)
    try:
        with database.writer.begin() as connection:
            if not database.url.is_sqlite:  # there BEGIN IMMEDIATE is enough
                connection.exec_driver_sql("LOCK TABLE operations IN EXCLUSIVE MODE")
            yield
    finally:
        database.close()


@pytest.fixture(scope="package", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    database = empty_database(request, directory)
    with serving(directory, database, **SHARED_SETTINGS) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Client:
    return server.client
