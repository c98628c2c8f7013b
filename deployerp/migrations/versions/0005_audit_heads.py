"""The audit log's ends: nothing is put in an entry's place, and a head only moves on"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# As in 0003.
_REFUSE = "SELECT RAISE(ABORT, 'The audit log is append-only.')"

# What REPLACE deletes, no trigger on DELETE sees. It goes by the hidden number of a row as well, which is -1
# where none is given. The head's insert may be one that moves it on: ours is `ON CONFLICT DO UPDATE`.
_ON_SQLITE = {
    "audit_log_no_replace": """
        BEFORE INSERT ON audit_log WHEN EXISTS (
            SELECT 1 FROM audit_log WHERE id = NEW.id OR rowid = NEW.rowid
            OR (organization_id = NEW.organization_id AND sequence = NEW.sequence)
        )
    """,
    "audit_heads_no_replace": """
        BEFORE INSERT ON audit_heads WHEN EXISTS (
            SELECT 1 FROM audit_heads WHERE rowid = NEW.rowid
            OR (organization_id = NEW.organization_id AND NEW.sequence IS NOT sequence + 1)
        )
    """,
    "audit_heads_no_delete": "BEFORE DELETE ON audit_heads",
    "audit_heads_only_on": """
        BEFORE UPDATE ON audit_heads WHEN NEW.sequence IS NOT OLD.sequence + 1
        OR NEW.organization_id IS NOT OLD.organization_id OR NEW.rowid IS NOT OLD.rowid
    """,
}

_ON_POSTGRES = {
    "append_only": "BEFORE DELETE OR TRUNCATE ON audit_heads FOR EACH STATEMENT",
    # Afterwards, so that a tenant who moves a head to another organization meets the wall between them first.
    "only_on": """
        AFTER UPDATE ON audit_heads FOR EACH ROW WHEN (
            NEW.sequence IS DISTINCT FROM OLD.sequence + 1
            OR NEW.organization_id IS DISTINCT FROM OLD.organization_id
        )
    """,
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for name, when in _ON_POSTGRES.items():
            op.execute(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION refuse_change()")
    else:
        # They go when a later migration makes the tables anew: it must make them again.
        for name, when in _ON_SQLITE.items():
            op.execute(f"CREATE TRIGGER {name} {when} BEGIN {_REFUSE}; END")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for name in _ON_POSTGRES:
            op.execute(f"DROP TRIGGER {name} ON audit_heads")
    else:
        for name in _ON_SQLITE:
            op.execute(f"DROP TRIGGER {name}")
