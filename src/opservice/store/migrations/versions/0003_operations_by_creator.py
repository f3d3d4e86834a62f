"""Lists the operations of a creator, counts those that run, and keeps less of each operation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        "UPDATE operations SET lease_token_hash = substr(lease_token_hash, 1, 16)"
        " WHERE length(lease_token_hash) > 16"
    )
    op.drop_index("operations_by_parent", "operations")
    op.create_index("operations_by_parent", "operations", ["parent", "created_at"])
    op.drop_index("operations_by_creation", "operations")
    every = (sa.column("created_at", sa.BigInteger) + sa.literal_column("0")).is_not(None)
    op.create_index(
        "operations_by_creation",
        "operations",
        ["created_at"],
        postgresql_where=every,
        sqlite_where=every,
    )
    op.create_index("operations_by_creator", "operations", ["created_by", "created_at"])
    running = ~sa.column("done", sa.Boolean)
    op.create_index(
        "operations_running",
        "operations",
        ["parent"],
        postgresql_where=running,
        sqlite_where=running,
    )
