"""Triggers that keep the audit log append-only, and its heads moving forward by one entry."""

from alembic import op

_MESSAGE = "The audit log is append-only."

_ON_POSTGRES = {
    ("audit_log", "append_only"): "BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log FOR EACH STATEMENT",
    ("audit_heads", "append_only"): "BEFORE DELETE OR TRUNCATE ON audit_heads FOR EACH STATEMENT",
    # AFTER: a tenant that moves a head to another organization meets the row policy first.
    ("audit_heads", "only_on"): """
        AFTER UPDATE ON audit_heads FOR EACH ROW WHEN (
            NEW.sequence IS DISTINCT FROM OLD.sequence + 1
            OR NEW.organization_id IS DISTINCT FROM OLD.organization_id
        )
    """,
}

# DELETE triggers do not fire for rows that REPLACE deletes. REPLACE also goes by the rowid, which is -1 where
# none is given. The insert into audit_heads may be our own `ON CONFLICT DO UPDATE` that moves a head on.
_ON_SQLITE = {
    "audit_log_no_update": "BEFORE UPDATE ON audit_log",
    "audit_log_no_delete": "BEFORE DELETE ON audit_log",
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


def protect_audit_log() -> None:
    """Creates the triggers; a migration that recreates one of the tables on SQLite must call it again."""
    if op.get_bind().dialect.name != "postgresql":
        for name, when in _ON_SQLITE.items():
            op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END")
        return
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{_MESSAGE}'; END $$"
    )
    for (_, name), when in _ON_POSTGRES.items():
        op.execute(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION refuse_change()")


def unprotect_audit_log() -> None:
    if op.get_bind().dialect.name != "postgresql":
        for name in _ON_SQLITE:
            op.execute(f"DROP TRIGGER {name}")
        return
    for table, name in _ON_POSTGRES:
        op.execute(f"DROP TRIGGER {name} ON {table}")
    op.execute("DROP FUNCTION refuse_change")
