"""Which key of a node has renewed, and which key asked for a certificate: older ones count no longer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Columns that are empty until a node renews."""
    op.add_column("nodes", sa.Column("proven_key", sa.String(64)))
    op.add_column("nodes", sa.Column("proven_s", sa.Float()))
    op.add_column("certificates", sa.Column("parent_key", sa.String(64)))
    op.create_index("certificates_by_end", "certificates", ["not_after_s"])
