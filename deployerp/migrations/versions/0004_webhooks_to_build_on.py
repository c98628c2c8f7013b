"""Webhooks to build on: a queue per endpoint, formats, headers, rotation, and what tenants may do with it"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TENANT = "deployerp_tenant"
_JSON = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
_TIME = sa.DateTime(timezone=True)
_PENDING = sa.text("state = 'pending'")

# Pings are events, and deliveries are sent again: by tenants, each with their own.
_GRANTS = (
    ("INSERT", "events"),
    ("UPDATE (event_sequence, updated_at)", "organizations"),
    ("INSERT, UPDATE", "webhook_deliveries"),
)


def _endpoint_columns() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("header_names", _JSON, nullable=False, server_default="[]"),
        sa.Column("sealed_headers", sa.String(), nullable=True),
        sa.Column("sealed_old_secret", sa.String(), nullable=True),
        sa.Column("old_secret_until", _TIME, nullable=True),
        sa.Column("failing_since", _TIME, nullable=True),
        sa.Column("awake", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def _delivery_columns() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("attempts_before", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("next_attempt_at", _TIME, nullable=True),
        sa.Column("error", sa.String(), nullable=True),
    )


def upgrade() -> None:
    for column in _endpoint_columns():
        op.add_column("webhook_endpoints", column)
    op.execute(
        "ALTER TABLE webhook_endpoints ADD COLUMN format VARCHAR NOT NULL DEFAULT 'raw'"
        " CONSTRAINT ck_webhook_endpoints_format CHECK (format IN ('raw', 'slack', 'teams', 'discord'))"
    )
    for column in _delivery_columns():
        op.add_column("webhook_deliveries", column)
    # What waits was on its way in a workflow of its own; now it is due at once.
    op.execute("UPDATE webhook_deliveries SET next_attempt_at = created_at WHERE state = 'pending'")
    op.drop_index("ix_webhook_deliveries_state", "webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["endpoint_id", "next_attempt_at", "id"],
        sqlite_where=_PENDING,
        postgresql_where=_PENDING,
    )
    if op.get_bind().dialect.name == "postgresql":
        for may, table in _GRANTS:
            op.execute(f"GRANT {may} ON {table} TO {_TENANT}")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for may, table in _GRANTS:
            op.execute(f"REVOKE {may} ON {table} FROM {_TENANT}")
    op.drop_index("ix_webhook_deliveries_due", "webhook_deliveries")
    op.create_index("ix_webhook_deliveries_state", "webhook_deliveries", ["state", "created_at"])
    with op.batch_alter_table("webhook_deliveries") as batch:
        for column in _delivery_columns():
            batch.drop_column(column.name)
    with op.batch_alter_table("webhook_endpoints") as batch:
        batch.drop_constraint(op.f("ck_webhook_endpoints_format"), type_="check")
        batch.drop_column("format")
        for column in _endpoint_columns():
            batch.drop_column(column.name)
