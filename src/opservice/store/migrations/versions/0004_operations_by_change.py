"""Finds the operations that have changed since a time, for those who follow many."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("operations_by_change", "operations", ["modified_at"])
