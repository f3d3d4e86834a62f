"""Keeps who started and who cancelled an operation, its labels, and the trace that it belongs to.

Servers of the version before go on: what they insert gets the defaults.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for name in ("cancelled_by", "producer", "labels", "traceparent"):
        # With a constant default no row is rewritten.
        op.add_column("operations", sa.Column(name, sa.Text, nullable=False, server_default=""))
