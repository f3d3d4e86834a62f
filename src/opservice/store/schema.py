"""The one table, and its indexes. Migrations must lead to exactly this (a test compares)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    literal_column,
)
from sqlalchemy.dialects import postgresql

from opservice.domain.operation import CancelPolicy


class CancelPolicyType(TypeDecorator[CancelPolicy]):
    """A CancelPolicy, as its number. Reading one that this version does not know raises ValueError."""

    impl = SmallInteger
    cache_ok = True

    def process_bind_param(self, value: CancelPolicy | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> CancelPolicy | None:
        return None if value is None else CancelPolicy(value)


# Ids and parents compare byte by byte: cheaper than a language's collation, and the same everywhere.
_Name = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

metadata = MetaData()

operations = Table(
    "operations",
    metadata,
    # The columns of operation.Record, in its order.
    Column("id", _Name, primary_key=True),
    Column("parent", _Name, nullable=False),
    Column("method", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("modified_at", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("done", Boolean, nullable=False),
    Column("metadata", LargeBinary),
    Column("response", LargeBinary),
    Column("error", LargeBinary),
    Column("error_code", SmallInteger),
    Column("cancel_policy", CancelPolicyType, nullable=False),
    Column("cancel_requested_at", BigInteger),
    Column("progress_done", BigInteger),
    Column("progress_total", BigInteger),
    Column("progress_unit", Text),
    Column("progress_message", Text),
    Column("lease_token_hash", LargeBinary),
    Column("lease", BigInteger),
    Column("lease_expires_at", BigInteger),
    Column("timeout_at", BigInteger),
    Column("retention", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("request_hash", LargeBinary),
    Column("cancelled_by", Text, nullable=False, server_default=""),
    Column("producer", Text, nullable=False, server_default=""),
    Column("labels", Text, nullable=False, server_default=""),
    Column("traceparent", Text, nullable=False, server_default=""),
)

_c = operations.c


BY_CREATION = (_c.created_at + literal_column("0")).is_not(None)
"""True of every operation. Only a query that says so may use the index of all by creation.

Otherwise PostgreSQL reads a parent's operations by it, passing over those of all others: how long a list
takes would depend on operations that its caller may not see.
"""


def _partial_index(name: str, column: Column[int], *, done: bool) -> Index:
    """An index of only those rows that housekeeping may have to act on."""
    condition = column.is_not(None) & (_c.done if done else ~_c.done)
    return Index(name, column, postgresql_where=condition, sqlite_where=condition)


# Without the id, which comes after created_at in the order of lists: the few that share a tick are sorted
# when they are read, and each index is a third smaller.
Index("operations_by_parent", _c.parent, _c.created_at)
Index(
    "operations_by_creation", _c.created_at, postgresql_where=BY_CREATION, sqlite_where=BY_CREATION
)
Index("operations_by_creator", _c.created_by, _c.created_at)
Index("operations_by_change", _c.modified_at)
Index("operations_running", _c.parent, postgresql_where=~_c.done, sqlite_where=~_c.done)
_partial_index("operations_by_lease", _c.lease_expires_at, done=False)
_partial_index("operations_by_timeout", _c.timeout_at, done=False)
_partial_index("operations_by_cancel", _c.cancel_requested_at, done=False)
_partial_index("operations_by_expiry", _c.expires_at, done=True)
