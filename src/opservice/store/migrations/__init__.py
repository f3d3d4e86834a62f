"""Bringing a database's schema to what this version needs, by Alembic."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from opservice.domain.errors import StartupError, StoreError
from opservice.store.engine import Database


def migrate(database: Database) -> tuple[str | None, str]:
    """Applies what is missing, in one transaction. Returns the revisions before and after.

    Raises StoreError when the database cannot be reached, StartupError when a newer version of
    opservice has migrated it.
    """

    def work(connection: Connection) -> str | None:
        before = _revision(connection)
        _refuse_unknown(before)
        # A migration may take its time; the limits are for what callers wait for.
        database.driver.lift_time_limits(connection)
        config = Config()
        directory = str(Path(__file__).parent)
        config.set_main_option("script_location", directory.replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return before

    try:
        before = database.write(work)
    except (StoreError, CommandError):
        # Of replicas that migrate at the same time, PostgreSQL lets one win once it has committed.
        before = database.read(_revision)
        if before != _head():
            raise
    return before, _head()


def check_schema(database: Database) -> None:
    """Raises StartupError unless the schema is the one that this version works on."""
    revision = database.read(_revision)
    _refuse_unknown(revision)
    if revision != _head():
        state = "has no opservice schema" if revision is None else f"is at schema {revision}"
        raise StartupError(
            f"the database {state}, and this version needs {_head()}: run 'opservice migrate', or"
            " serve with --migrate"
        )


def schema_fault(database: Database) -> str | None:
    """What is wrong with the schema for a server that runs already, in plain words; else None.

    One that a newer version has migrated is right: migrations leave what the version before needs, and
    its servers go on until they are replaced. Raises a StoreError.
    """
    revision = database.read(_revision)
    if revision is None:
        return "the database has no opservice schema"
    if revision in _known() and revision != _head():
        return "the schema of the database is out of date: run 'opservice migrate'"
    return None


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_unknown(revision: str | None) -> None:
    if revision is not None and revision not in _known():
        raise StartupError(
            f"the database is at schema {revision}, which a newer opservice made: upgrade this one"
        )


@cache
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in _scripts().walk_revisions())


@cache
def _head() -> str:
    head = _scripts().get_current_head()
    assert head is not None
    return head


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))
