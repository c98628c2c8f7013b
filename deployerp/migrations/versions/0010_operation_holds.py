"""Operations hold resources, order others, and know what users want their instances to be"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_EXCLUSIVE = sa.text("mode = 'exclusive'")
_OPEN = sa.text("state IN ('pending', 'running', 'cancelling')")
_OWN = "organization_id = (SELECT nullif(current_setting('deployerp.organization_id', true), '')::uuid)"


def upgrade() -> None:
    op.create_table(
        "operation_holds",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("organization_id", sa.Uuid(), nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("resource_type", sa.String(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("status_before", sa.String(), nullable=False),
        sa.CheckConstraint("mode IN ('exclusive', 'shared')", name=op.f("ck_operation_holds_mode")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_operation_holds_organization_id")
        ),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.id"], name=op.f("fk_operation_holds_operation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation_holds")),
    )
    op.create_index("ix_operation_holds_operation_id", "operation_holds", ["operation_id"])
    op.create_index("ix_operation_holds_resource_id", "operation_holds", ["resource_id"])
    op.create_index(
        "uq_operation_holds_exclusive_resource_id",
        "operation_holds",
        ["resource_id"],
        unique=True,
        sqlite_where=_EXCLUSIVE,
        postgresql_where=_EXCLUSIVE,
    )
    op.execute(
        "INSERT INTO operation_holds (id, created_at, updated_at, organization_id, operation_id, resource_type,"
        " resource_id, mode, status_before) SELECT id, created_at, updated_at, organization_id, id,"
        " resource_type, resource_id, 'exclusive', coalesce(status_before, 'failed') FROM operations"
        " WHERE state IN ('pending', 'running', 'cancelling')"
    )
    op.drop_index("uq_operations_open_resource_id", "operations")
    op.execute("ALTER TABLE operations DROP COLUMN status_before")
    # Not by a new table, as Alembic does it on SQLite: other rows refer to the rows of these.
    op.execute(f"ALTER TABLE operations ADD COLUMN parent_id {_uuid()} REFERENCES operations (id)")
    op.create_index("ix_operations_parent_id", "operations", ["parent_id"])
    op.execute(
        "ALTER TABLE instances ADD COLUMN desired_state VARCHAR NOT NULL DEFAULT 'running'"
        " CONSTRAINT ck_instances_desired_state CHECK (desired_state IN ('running', 'stopped'))"
    )
    if op.get_bind().dialect.name == "postgresql":
        _let_tenants_in()


def downgrade() -> None:
    op.execute("ALTER TABLE instances DROP COLUMN desired_state")
    op.drop_index("ix_operations_parent_id", "operations")
    op.execute("ALTER TABLE operations DROP COLUMN parent_id")
    op.execute("ALTER TABLE operations ADD COLUMN status_before VARCHAR")
    op.drop_table("operation_holds")
    op.create_index(
        "uq_operations_open_resource_id",
        "operations",
        ["resource_id"],
        unique=True,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )


def _uuid() -> str:
    return str(sa.Uuid().compile(dialect=op.get_bind().dialect))


def _let_tenants_in() -> None:
    # As in 0003, of the tables of which a tenant has rows.
    op.execute("ALTER TABLE operation_holds ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE operation_holds FORCE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY control_plane ON operation_holds TO CURRENT_USER USING (true) WITH CHECK (true)"
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON operation_holds TO deployerp_tenant")
    op.execute(
        f"CREATE POLICY tenant ON operation_holds TO deployerp_tenant USING ({_OWN}) WITH CHECK ({_OWN})"
    )
