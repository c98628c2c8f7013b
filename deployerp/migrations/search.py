"""Search through an index on PostgreSQL, for tables that declare `searched` columns."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from deployerp.core.errors import Unavailable
from deployerp.migrations.row_policies import TENANT_ROLE, tenant_id

# Any owner of a database may create these, unless an administrator has taken that away.
_EXTENSIONS = ("btree_gin", "pg_trgm")
_SEPARATOR = "'\n'"


def ensure_search_extensions() -> None:
    """Creates the extensions that search needs. Raises `Unavailable` with what a superuser has to run."""
    for extension in _EXTENSIONS:
        try:
            with op.get_bind().begin_nested():
                op.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
        except sa.exc.DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in ("42501", "0A000", "58P01"):
                raise
            raise Unavailable(
                f"The extension {extension} cannot be created: PostgreSQL needs its contrib modules, and the"
                f" role the right to create them. Let a superuser of PostgreSQL run"
                f" `CREATE EXTENSION {extension}` in this database, then run the migration again."
            ) from None


def create_search(table: str, columns: Sequence[str]) -> None:
    """The index of the columns' text, and the function `search_<table>` that finds ids with it.

    The function runs as its owner, past row level security, which would keep LIKE from the index. It returns
    ids only, and none of an organization other than the tenant's.
    """
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    whole = f" || {_SEPARATOR} || ".join(f"coalesce({name}, '')" for name in columns)
    searched = f"lower({_SEPARATOR} || {whole})"
    # A list of pending entries would slow down searches, and the inserts that have to empty it.
    op.execute(
        f"CREATE INDEX ix_{table}_search ON {table} USING gin (organization_id, ({searched}) gin_trgm_ops)"
        " WITH (fastupdate = off) WHERE deleted_at IS NULL"
    )
    # A low ROWS has the planner look each id up in the table, instead of scanning the table.
    found = (
        f"SELECT id FROM {schema}.{table}"  # noqa: S608  (all of it is ours)
        f" WHERE organization_id = organization AND organization = {tenant_id()}"
        f" AND deleted_at IS NULL AND {searched} LIKE pattern"
    )
    op.execute(
        f"CREATE FUNCTION search_{table}(organization uuid, pattern text) RETURNS SETOF uuid"
        " LANGUAGE sql STABLE STRICT ROWS 10 SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
        f" AS $${found}$$"
    )
    op.execute(f"REVOKE ALL ON FUNCTION search_{table}(uuid, text) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION search_{table}(uuid, text) TO {TENANT_ROLE}")


def drop_search(table: str) -> None:
    """Drops the function; the index goes with its table."""
    op.execute(f"DROP FUNCTION search_{table}(uuid, text)")


def is_compared(item: Any, name: str | None, kind: str, reflected: bool, compared_to: Any) -> bool:
    """Whether Alembic compares a thing with the models, which do not declare the indexes of search."""
    return not (kind == "index" and (name or "").endswith("_search"))
