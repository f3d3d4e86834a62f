"""The database's clocks, as SQL functions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction


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
    """The same as of the moment in which it is evaluated, however long ago its statement came in."""

    type = BigInteger()
    inherit_cache = True


@compiles(wall_clock, "postgresql")
def _postgresql_wall_clock(element: wall_clock, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(wall_clock, "sqlite")
def _sqlite_wall_clock(element: wall_clock, compiler: SQLCompiler, **_: Any) -> str:
    return _sqlite_clock(database_clock(), compiler)
