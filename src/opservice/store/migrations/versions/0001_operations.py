"""The operations table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    name = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
    op.create_table(
        "operations",
        sa.Column("id", name, primary_key=True),
        sa.Column("parent", name, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("modified_at", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("done", sa.Boolean, nullable=False),
        sa.Column("metadata", sa.LargeBinary),
        sa.Column("response", sa.LargeBinary),
        sa.Column("error", sa.LargeBinary),
        sa.Column("error_code", sa.SmallInteger),
        sa.Column("cancel_policy", sa.SmallInteger, nullable=False),
        sa.Column("cancel_requested_at", sa.BigInteger),
        sa.Column("progress_done", sa.BigInteger),
        sa.Column("progress_total", sa.BigInteger),
        sa.Column("progress_unit", sa.Text),
        sa.Column("progress_message", sa.Text),
        sa.Column("lease_token_hash", sa.LargeBinary),
        sa.Column("lease", sa.BigInteger),
        sa.Column("lease_expires_at", sa.BigInteger),
        sa.Column("timeout_at", sa.BigInteger),
        sa.Column("retention", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("request_hash", sa.LargeBinary),
    )
    op.create_index("operations_by_parent", "operations", ["parent", "created_at", "id"])
    done = sa.column("done", sa.Boolean)
    for index, column, state in (
        ("operations_by_lease", "lease_expires_at", ~done),
        ("operations_by_timeout", "timeout_at", ~done),
        ("operations_by_cancel", "cancel_requested_at", ~done),
        ("operations_by_expiry", "expires_at", done),
    ):
        condition = sa.column(column).is_not(None) & state
        op.create_index(
            index, "operations", [column], postgresql_where=condition, sqlite_where=condition
        )
