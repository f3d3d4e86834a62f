"""Reading who may see an operation, and nothing else of it.

How long that takes does not depend on payloads: SQLite has these columns before them in the row, and
PostgreSQL does not fetch what is not asked for. So it is not asked either whether the operation has expired:
SQLite has that behind the payloads.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, select

from opservice.domain.operation import Origin
from opservice.store.compiled import PostgresqlFind, SqliteGet
from opservice.store.repository import among_ids
from opservice.store.schema import operations

_c = operations.c
_ORIGIN = [_c[field] for field in Origin._fields]
_GET_ONE = select(*_ORIGIN).where(_c.id == bindparam("operation_id"))
_FIND = among_ids(select(*_ORIGIN))


def find_origins(connection: Connection, ids: Iterable[str]) -> dict[str, Origin]:
    """Of those operations that exist."""
    rows = connection.execute(_FIND[connection.dialect.name], {"operation_ids": list(ids)})
    return {row.id: Origin(*row) for row in rows}


def compile_get_origin() -> SqliteGet[Origin]:
    return SqliteGet(_GET_ONE, _ORIGIN, Origin)


def compile_find_origins() -> PostgresqlFind[Origin]:
    return PostgresqlFind(_FIND["postgresql"], _ORIGIN, Origin)
