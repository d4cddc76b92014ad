"""Nodes, tokens, certificates, what nodes told, audit log, sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("group_name", sa.String(63), nullable=False),
        sa.Column("label", sa.String(200), nullable=False),
        sa.Column("approval", sa.Boolean(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("expires_s", sa.Float(), nullable=False),
        sa.Column("revoked_s", sa.Float()),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column("label", sa.String(200), nullable=False),
        sa.Column("group_name", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("token_id", sa.String(32), sa.ForeignKey("tokens.id")),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("approved_s", sa.Float()),
        sa.Column("approved_by", sa.String(100)),
        sa.Column("revoked_s", sa.Float()),
        sa.Column("revoked_by", sa.String(100)),
        sa.Column("not_after_s", sa.Float()),
        sa.UniqueConstraint("key_sha256", name="one_node_per_key"),
    )
    op.create_index("nodes_by_state", "nodes", ["state", "id"])
    op.create_table(
        "token_uses",
        sa.Column("token_id", sa.String(32), sa.ForeignKey("tokens.id"), primary_key=True),
        sa.Column("key_sha256", sa.String(64), primary_key=True),
        sa.Column("node_id", sa.String(63), sa.ForeignKey("nodes.id"), nullable=False),
        sa.Column("used_s", sa.Float(), nullable=False),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(40), primary_key=True),
        sa.Column("node_id", sa.String(63), sa.ForeignKey("nodes.id"), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("issuer", sa.String(64), nullable=False),
        sa.Column("not_before_s", sa.Float(), nullable=False),
        sa.Column("not_after_s", sa.Float(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
    )
    op.create_index("certificates_by_node", "certificates", ["node_id", "not_after_s"])
    op.create_table(
        "node_status",
        sa.Column("node_id", sa.String(63), sa.ForeignKey("nodes.id"), primary_key=True),
        sa.Column("last_seen_s", sa.Float(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("info", sa.Text(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("subject", sa.String(100), nullable=False),
        sa.Column("detail", sa.String(400), nullable=False),
    )
    op.create_index("audit_by_subject", "audit", ["subject", "id"])
    op.create_table(
        "sessions",
        sa.Column("id_sha256", sa.String(64), primary_key=True),
        sa.Column("key_name", sa.String(100), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("expires_s", sa.Float(), nullable=False),
    )
