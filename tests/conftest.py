"""What every test may ask for: a PostgreSQL server, and a fresh database of either kind."""

from __future__ import annotations

import os
import shutil
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
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema and no operations, to be copied: migrating takes longer."""
    path = tmp_path_factory.mktemp("migrated") / "operations.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_template(postgres: PostgresServer) -> str:
    """The name of a PostgreSQL database with the schema and no operations, to make others from."""
    url = postgres.create_database()
    _migrate(url)
    return url.rpartition("/")[2]


@pytest.fixture(scope="session")
def spare_databases() -> list[str]:
    """URLs of PostgreSQL databases that a test has used, and that have been emptied since."""
    return []


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture
def database_url(backend: Backend, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the schema in it and nothing else."""
    if backend == "sqlite":
        copy = shutil.copyfile(request.getfixturevalue("migrated_file"), tmp_path / "operations.db")
        yield f"sqlite:///{copy}"
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    template: str = request.getfixturevalue("migrated_template")
    spare: list[str] = request.getfixturevalue("spare_databases")
    url = spare.pop() if spare else postgres.create_database(template)
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


def _migrate(url: str) -> None:
    database = open_database(url)
    migrate(database)
    database.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For tests whose claim does not depend on the database, which is made by who opens it."""
    return f"sqlite:///{tmp_path}/operations.db"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()
