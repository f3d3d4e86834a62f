"""Statements compiled once, for connections of the drivers themselves.

To a query that takes SQLite 10 microseconds SQLAlchemy's execution adds 50: a quarter of a Get. To one that
is sent to PostgreSQL it and psycopg's cursor add four times what libpq takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, Dialect, LargeBinary, Select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.sql.compiler import SQLCompiler

from opservice.store.libpq import Line

Made = TypeVar("Made")


class _Compiled(Generic[Made]):
    """A query with one parameter that differs each time; of each row something is made."""

    def __init__(
        self,
        query: Select[Any],
        columns: Sequence[Column[Any]],
        make: Callable[..., Made],
        dialect: Dialect,
        given: str,
    ) -> None:
        compiled = query.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        assert compiled.positiontup is not None
        self._sql = str(compiled)
        self._given = given
        self._make = make
        self._parameters = [compiled.binds[name] for name in compiled.positiontup]
        converters = [
            None
            if isinstance(column.type, LargeBinary)  # the drivers make bytes themselves
            else column.type.dialect_impl(dialect).result_processor(dialect, None)
            for column in columns
        ]
        self._converters = [(at, each) for at, each in enumerate(converters) if each is not None]

    def _values(self, given: Any) -> list[Any]:
        return [
            given if each.key == self._given else each.effective_value for each in self._parameters
        ]

    def _made(self, row: Sequence[Any]) -> Made:
        values = list(row)
        for at, convert in self._converters:
            values[at] = convert(values[at])
        return self._make(*values)


class SqliteGet(_Compiled[Made]):
    """Finds one operation."""

    def __init__(
        self, query: Select[Any], columns: Sequence[Column[Any]], make: Callable[..., Made]
    ) -> None:
        super().__init__(query, columns, make, sqlite.dialect(), "operation_id")

    def __call__(self, connection: Any, operation_id: str) -> Made | None:
        """Takes a connection of the driver. Raises what the driver raises."""
        row = connection.execute(self._sql, self._values(operation_id)).fetchone()
        return None if row is None else self._made(row)


class PostgresqlFind(_Compiled[Made]):
    """Finds operations by their ids, with a statement that is prepared once for each connection, or never."""

    def __init__(
        self, query: Select[Any], columns: Sequence[Column[Any]], make: Callable[..., Made]
    ) -> None:
        # $1, as PostgreSQL itself writes a parameter
        dialect = PGDialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call] # SQLAlchemy's
        super().__init__(query, columns, make, dialect, "operation_ids")
        self._statement = self._sql.encode()
        # Behind a pooler the name may be that of another version, whose rows are different.
        self._name = b"opservice_find_" + sha256(self._statement).hexdigest()[:16].encode()

    async def prepare(self, line: Line) -> None:
        """Makes the calls on this line cheaper. Raises a psycopg.Error."""
        await line.prepare(self._name, self._statement)

    async def __call__(self, line: Line, ids: Sequence[str]) -> list[Made]:
        """Raises a psycopg.Error."""
        return await line.fetch(self._name, self._statement, self._values(ids), self._made)
