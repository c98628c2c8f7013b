"""Operations know what was before them, that they stall, and when a step is tried again"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_COLUMNS = (
    ("operations", "status_before", sa.String()),
    ("operations", "stalled_at", _TIME),
    ("operation_steps", "first_failed_at", _TIME),
    ("operation_steps", "next_attempt_at", _TIME),
)


def upgrade() -> None:
    for table, name, kind in _COLUMNS:
        op.add_column(table, sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    # Not by a new table, as Alembic does it on SQLite: steps refer to the rows of this one.
    for table, name, _ in _COLUMNS:
        op.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
