"""Lists the operations of all parents."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("operations_by_creation", "operations", ["created_at", "id"])
