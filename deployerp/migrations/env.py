"""Runs migrations on the database of the configuration."""

import asyncio
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, text
from sqlmodel import AutoString

from deployerp.database.base import UtcDateTime
from deployerp.database.sessions import open_database
from deployerp.domain.tables import metadata
from deployerp.migrations.search import is_compared

# Any number, the same in every process: two that start at once must not both migrate.
_LOCK = 7_265_001
_LOCK_TIMEOUT = "5s"


def _render(kind: str, item: Any, _context: object) -> str | Literal[False]:
    """Migrations name plain types, so that they stay true when our own change."""
    plain: dict[type, str] = {UtcDateTime: "sa.DateTime(timezone=True)", AutoString: "sa.String()"}
    return plain.get(type(item)) or False if kind == "type" else False


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_object=is_compared,
        render_item=_render,
        # SQLite cannot alter a table; Alembic makes a new one and moves the rows.
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            # What waits for a lock on a table keeps everybody who comes after it waiting too.
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        context.run_migrations()


async def _run() -> None:
    # Without limits: a migration of a large table takes as long as it takes.
    engine = open_database(context.config.attributes["database_url"], limits={})
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
            await connection.commit()
    finally:
        await engine.dispose()


asyncio.run(_run())
