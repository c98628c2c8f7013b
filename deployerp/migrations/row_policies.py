"""Row level security on PostgreSQL: which rows of a table a tenant's transaction sees and writes.

Every table has a policy, or is closed to tenants: a migration that creates one says which.
"""

import sqlalchemy as sa
from alembic import op

from deployerp.core.errors import Unavailable

TENANT_ROLE = "deployerp_tenant"


def tenant_id() -> str:
    """The SQL expression of the tenant's organization id; a sub-select, so that it is evaluated once."""
    return "(SELECT nullif(current_setting('deployerp.organization_id', true), '')::uuid)"


OWN_ROWS = f"organization_id = {tenant_id()}"


def row_policy(table: str, privileges: str, rows: str = OWN_ROWS) -> None:
    """Grants tenants these privileges on the rows of a table for which the SQL condition `rows` holds."""
    close_to_tenants(table)
    op.execute(f"GRANT {privileges} ON {table} TO {TENANT_ROLE}")
    op.execute(f"CREATE POLICY tenant ON {table} TO {TENANT_ROLE} USING ({rows}) WITH CHECK ({rows})")


def close_to_tenants(table: str) -> None:
    """Hides a table from tenants; workers, authentication and the sweep see every row."""
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    # Without FORCE the owner of the table would bypass its policies.
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY control_plane ON {table} TO CURRENT_USER USING (true) WITH CHECK (true)")


def ensure_tenant_role() -> None:
    """Creates the role of tenants, and lets us assume it and it use the schema.

    Roles belong to the whole cluster: other databases may have created it. Raises `Unavailable` with what a
    superuser has to run where our own role may not.
    """
    bind = op.get_bind()
    exists = f"EXISTS (SELECT FROM pg_roles WHERE rolname = '{TENANT_ROLE}')"
    _execute_unless(exists, f"CREATE ROLE {TENANT_ROLE} NOLOGIN")
    # Since PostgreSQL 16 a member needs the option SET to assume a role.
    version = bind.execute(sa.text("SHOW server_version_num")).scalar_one()
    privilege = "SET" if version >= "160000" else "MEMBER"
    _execute_unless(f"pg_has_role('{TENANT_ROLE}', '{privilege}')", f"GRANT {TENANT_ROLE} TO CURRENT_USER")
    query = (
        "SELECT quote_ident(current_schema()),"
        f" has_schema_privilege('{TENANT_ROLE}', current_schema(), 'USAGE')"
    )
    schema, usable = bind.execute(sa.text(query)).one()
    if not usable:
        op.execute(f"GRANT USAGE ON SCHEMA {schema} TO {TENANT_ROLE}")


def _execute_unless(condition: str, statement: str) -> None:
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
            f"{user} may not create or assume the role {TENANT_ROLE}. Let a superuser of PostgreSQL run"
            f" `CREATE ROLE {TENANT_ROLE} NOLOGIN` (unless it exists) and `GRANT {TENANT_ROLE} TO {user}`,"
            " then run the migration again."
        ) from None
