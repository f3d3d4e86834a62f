"""How SQLite spells the expressions of store/sql.py."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from opservice.store.sql import IsAmong, database_clock, in_bytes, position_in, wall_clock


@compiles(database_clock, "sqlite")
@compiles(wall_clock, "sqlite")
def _clock(element: database_clock | wall_clock, compiler: SQLCompiler, **_: Any) -> str:
    # Its clock has milliseconds; a Julian day as a double has not many more.
    return "(CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000)"


@compiles(IsAmong, "sqlite")
def _is_among(element: IsAmong, compiler: SQLCompiler, **options: Any) -> str:
    column, texts = element.clauses
    values = func.json_each(texts).table_valued("value")
    return compiler.process(column.in_(select(values.c.value)), **options)


@compiles(position_in, "sqlite")
def _position_in(element: position_in, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(func.instr(*element.clauses), **options)


@compiles(in_bytes, "sqlite")
def _in_bytes(element: in_bytes, compiler: SQLCompiler, **options: Any) -> str:
    (text,) = element.clauses
    return compiler.process(text, **options)
