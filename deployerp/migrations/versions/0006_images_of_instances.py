"""The images of instances, recorded; those of instances that are there already with their next start"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COLUMNS = ("postgres_image", "postgres_digest", "odoo_image", "odoo_digest")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("instances", sa.Column(name, sa.String(), nullable=True))


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("instances", name)
