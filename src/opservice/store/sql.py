"""SQL that each database spells in its own way, as expressions that are the same for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Text,
    TypeDecorator,
    any_,
    bindparam,
    func,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine


class database_clock(GenericFunction[int]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock, in microseconds since the epoch: all replicas share it."""

    type = BigInteger()
    inherit_cache = True


@compiles(database_clock, "postgresql")
def _postgresql_clock(element: database_clock, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS BIGINT)"


@compiles(database_clock, "sqlite")
def _sqlite_clock(element: database_clock, compiler: SQLCompiler, **_: Any) -> str:
    # Its clock has milliseconds; a Julian day as a double has not many more.
    return "(CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000)"


class wall_clock(GenericFunction[int]):  # noqa: N801 - as above
    """The same clock at the moment of evaluation, however long ago the statement came in."""

    type = BigInteger()
    inherit_cache = True


@compiles(wall_clock, "postgresql")
def _postgresql_wall_clock(element: wall_clock, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(wall_clock, "sqlite")
def _sqlite_wall_clock(element: wall_clock, compiler: SQLCompiler, **_: Any) -> str:
    return _sqlite_clock(database_clock(), compiler)


class _Texts(TypeDecorator[Iterable[str]]):
    """A list of texts as one parameter."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(Text) if dialect.name == "postgresql" else JSON())


def is_among(column: Column[str], name: str) -> ColumnElement[bool]:
    """The column's value is among those of the parameter with this name, a list of any length.

    The list is one parameter. So the statement is the same for any length: it is compiled and prepared once,
    and the list may be longer than the number of parameters that a statement may have.
    """
    return _is_among(column, bindparam(name, type_=_Texts()))


class _is_among(GenericFunction[bool]):  # noqa: N801 - as above
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        """Stands as it is, not as the number that SQLite takes for a truth value."""
        return self


@compiles(_is_among, "postgresql")
def _equals_any(element: _is_among, compiler: SQLCompiler, **options: Any) -> str:
    column, texts = element.clauses
    return compiler.process(column == any_(texts), **options)


@compiles(_is_among, "sqlite")
def _in_json(element: _is_among, compiler: SQLCompiler, **options: Any) -> str:
    column, texts = element.clauses
    values = func.json_each(texts).table_valued("value")
    return compiler.process(column.in_(select(values.c.value)), **options)


class position_in(GenericFunction[int]):  # noqa: N801 - as above
    """Where in the first text the second begins, in characters from 1; 0 when it is not there."""

    type = BigInteger()
    inherit_cache = True


@compiles(position_in, "postgresql")
def _strpos(element: position_in, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(func.strpos(*element.clauses), **options)


@compiles(position_in, "sqlite")
def _instr(element: position_in, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(func.instr(*element.clauses), **options)


class in_bytes(GenericFunction[str]):  # noqa: N801 - as above
    """The text, which compares byte by byte, whatever language the database is set to."""

    type = Text()
    inherit_cache = True


@compiles(in_bytes, "postgresql")
def _collated(element: in_bytes, compiler: SQLCompiler, **options: Any) -> str:
    (text,) = element.clauses
    return compiler.process(text.collate("C"), **options)


@compiles(in_bytes, "sqlite")
def _as_it_is(element: in_bytes, compiler: SQLCompiler, **options: Any) -> str:
    (text,) = element.clauses
    return compiler.process(text, **options)
