"""What this control plane marks its machines with"""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    table = op.create_table(
        "installations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installations")),
    )
    now = sa.func.now()
    op.execute(sa.insert(table).values(id=uuid4(), created_at=now, updated_at=now))
    if op.get_bind().dialect.name == "postgresql":
        # As in 0003, of the tables that no tenant has any business with.
        op.execute("ALTER TABLE installations ENABLE ROW LEVEL SECURITY")
        op.execute("ALTER TABLE installations FORCE ROW LEVEL SECURITY")
        op.execute(
            "CREATE POLICY control_plane ON installations TO CURRENT_USER USING (true) WITH CHECK (true)"
        )


def downgrade() -> None:
    op.drop_table("installations")
