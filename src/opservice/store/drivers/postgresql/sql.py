"""How PostgreSQL spells the expressions of store/sql.py."""

from __future__ import annotations

from typing import Any

from sqlalchemy import any_, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from opservice.store.sql import IsAmong, database_clock, in_bytes, position_in, wall_clock


@compiles(database_clock, "postgresql")
def _database_clock(element: database_clock, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS BIGINT)"


@compiles(wall_clock, "postgresql")
def _wall_clock(element: wall_clock, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(IsAmong, "postgresql")
def _is_among(element: IsAmong, compiler: SQLCompiler, **options: Any) -> str:
    column, texts = element.clauses
    return compiler.process(column == any_(texts), **options)


@compiles(position_in, "postgresql")
def _position_in(element: position_in, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(func.strpos(*element.clauses), **options)


@compiles(in_bytes, "postgresql")
def _in_bytes(element: in_bytes, compiler: SQLCompiler, **options: Any) -> str:
    (text,) = element.clauses
    return compiler.process(text.collate("C"), **options)
