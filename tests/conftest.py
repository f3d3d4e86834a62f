"""What every test may ask for: a PostgreSQL server, and a fresh database of either kind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from support.postgres import PostgresServer

Backend = Literal["sqlite", "postgresql"]

# Processes that tests start would each compile opservice anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Few examples while somebody waits for the tests; CI asks for many: --hypothesis-profile=many.
# No test asserts how long anything takes, and neither does Hypothesis.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("few", unhurried, max_examples=40)
settings.register_profile("many", unhurried, max_examples=200)
settings.load_profile("few")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for a server to start or to end."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """For tests that stop it, or set it otherwise."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def migrated_databases(postgres: PostgresServer) -> list[str]:
    """URLs of databases with the schema and no operations, to be borrowed: making one takes long."""
    return []


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture
def database_url(backend: Backend, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the schema in it and nothing else."""
    if backend == "sqlite":
        yield _migrated(f"sqlite:///{tmp_path}/operations.db")
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    spare: list[str] = request.getfixturevalue("migrated_databases")
    url = spare.pop() if spare else _migrated(postgres.create_database())
    name = url.rpartition("/")[2]
    made = postgres.execute(_SCHEMA, name)
    yield url
    with suppress(psycopg.Error):  # one that cannot be emptied is not used again
        postgres.execute("SET lock_timeout = '1s'; TRUNCATE operations", name)
        if postgres.execute(_SCHEMA, name) == made:
            spare.append(url)


_SCHEMA = """
    SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace),
           (SELECT count(*) FROM pg_constraint WHERE connamespace = 'public'::regnamespace),
           (SELECT string_agg(version_num, ' ') FROM alembic_version)
"""


def _migrated(url: str) -> str:
    database = open_database(url)
    migrate(database)
    database.close()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()
