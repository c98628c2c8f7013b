"""Walls: tenants are held to their own rows by PostgreSQL, and nobody changes the audit log"""

import sqlalchemy as sa
from alembic import op

from deployerp.core.errors import Unavailable

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TENANT = "deployerp_tenant"
# A sub-select, so that it is evaluated once and not for every row.
_TOLD = "(SELECT nullif(current_setting('deployerp.organization_id', true), '')::uuid)"
_OWN = f"organization_id = {_TOLD}"

# What a tenant may do with which of its rows. Of tables that others follow, the others' policy is enough:
# the rows of a sub-select are held to their own. What is missing here tenants do not touch at all.
_WALLS: dict[str, tuple[str, str]] = {
    "organizations": ("SELECT", f"id = {_TOLD}"),
    "members": ("SELECT, INSERT, UPDATE, DELETE", _OWN),
    "users": ("SELECT", "EXISTS (SELECT FROM members WHERE members.user_id = users.id)"),
    "api_keys": ("SELECT, INSERT, UPDATE", _OWN),
    "providers": ("SELECT, INSERT, UPDATE", _OWN),
    "servers": ("SELECT, INSERT, UPDATE", _OWN),
    "instances": ("SELECT, INSERT, UPDATE", _OWN),
    "operations": ("SELECT, INSERT, UPDATE", _OWN),
    "operation_steps": ("SELECT", "EXISTS (SELECT FROM operations WHERE operations.id = operation_id)"),
    "events": ("SELECT", _OWN),
    "webhook_endpoints": ("SELECT, INSERT, UPDATE", _OWN),
    "webhook_deliveries": ("SELECT", _OWN),
    "webhook_attempts": (
        "SELECT",
        "EXISTS (SELECT FROM webhook_deliveries WHERE webhook_deliveries.id = delivery_id)",
    ),
    "idempotency_records": ("SELECT, INSERT, UPDATE, DELETE", _OWN),
    "audit_heads": ("SELECT, INSERT, UPDATE", _OWN),
    "audit_log": ("SELECT, INSERT", _OWN),
}
_CLOSED = ("identities", "rate_windows", "refresh_tokens")

_APPEND_ONLY = "The audit log is append-only."


def upgrade() -> None:
    op.add_column(
        "audit_heads", sa.Column("previous_hash", sa.String(), nullable=False, server_default="0" * 64)
    )
    if op.get_bind().dialect.name == "postgresql":
        _ensure_tenant()
        _build_walls()
        _protect_on_postgres()
    else:
        _protect_on_sqlite()


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER append_only ON audit_log")
        op.execute("DROP FUNCTION refuse_change")
        _take_walls_down()
    else:
        for change in ("update", "delete"):
            op.execute(f"DROP TRIGGER audit_log_no_{change}")
    with op.batch_alter_table("audit_heads") as batch:
        batch.drop_column("previous_hash")


def _ensure_tenant() -> None:
    """The role that requests of tenants are, and our right to be it. Roles belong to the whole cluster."""
    bind = op.get_bind()
    # Other databases of the cluster may be at the same point.
    create = f"CREATE ROLE {_TENANT} NOLOGIN"
    exists = f"EXISTS (SELECT FROM pg_roles WHERE rolname = '{_TENANT}')"
    _unless(exists, create)
    # Since 16 to be a member is not yet to be allowed `SET ROLE`.
    way = "SET" if bind.execute(sa.text("SHOW server_version_num")).scalar_one() >= "160000" else "MEMBER"
    _unless(f"pg_has_role('{_TENANT}', '{way}')", f"GRANT {_TENANT} TO CURRENT_USER")


def _unless(condition: str, statement: str) -> None:
    try:
        with op.get_bind().begin_nested():
            op.execute(
                f"""
                DO $$ BEGIN
                    IF NOT {condition} THEN {statement}; END IF;
                EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
                END $$
                """
            )
    except sa.exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":
            raise
        user = op.get_bind().execute(sa.text("SELECT quote_ident(current_user)")).scalar_one()
        raise Unavailable(
            f"{user} may not make the role {_TENANT} or be it. Let a superuser of PostgreSQL run"
            f" `CREATE ROLE {_TENANT} NOLOGIN` (unless it is there) and `GRANT {_TENANT} TO {user}`,"
            " and migrate again."
        ) from None


def _build_walls() -> None:
    schema, usable = (
        op.get_bind()
        .execute(
            sa.text(
                "SELECT quote_ident(current_schema()),"
                f" has_schema_privilege('{_TENANT}', current_schema(), 'USAGE')"
            )
        )
        .one()
    )
    if not usable:
        op.execute(f"GRANT USAGE ON SCHEMA {schema} TO {_TENANT}")
    for table in (*_WALLS, *_CLOSED):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        # For the owner too, so that who owns the tables is what its policy says and no more.
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        # The worker, authentication and the sweeper act for all organizations.
        op.execute(f"CREATE POLICY control_plane ON {table} TO CURRENT_USER USING (true) WITH CHECK (true)")
    for table, (may, which) in _WALLS.items():
        op.execute(f"GRANT {may} ON {table} TO {_TENANT}")
        op.execute(f"CREATE POLICY tenant ON {table} TO {_TENANT} USING ({which}) WITH CHECK ({which})")


def _take_walls_down() -> None:
    # The role stays: other databases of the cluster may use it.
    for table, (may, _) in _WALLS.items():
        op.execute(f"DROP POLICY tenant ON {table}")
        op.execute(f"REVOKE {may} ON {table} FROM {_TENANT}")
    for table in (*_WALLS, *_CLOSED):
        op.execute(f"DROP POLICY control_plane ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")


def _protect_on_postgres() -> None:
    op.execute(
        f"""
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION '{_APPEND_ONLY}'; END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
        """
    )


def _protect_on_sqlite() -> None:
    # They go when a later migration makes the table anew: it must make them again.
    for change in ("update", "delete"):
        op.execute(
            f"CREATE TRIGGER audit_log_no_{change} BEFORE {change} ON audit_log"
            f" BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END"
        )
