"""Operations keep the id of their workflow, and what their resource was called when they were ordered"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COLUMNS = ("workflow_id", "resource_name", "resource_slug")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("operations", sa.Column(name, sa.String(), nullable=True))


def downgrade() -> None:
    # Not by a new table, as Alembic does it on SQLite: steps refer to the rows of this one.
    for name in _COLUMNS:
        op.execute(f"ALTER TABLE operations DROP COLUMN {name}")
