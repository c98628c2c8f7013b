"""Sessions on SQLite and PostgreSQL that behave alike."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from deployerp.domain import (  # noqa: F401  (their tables register in the metadata)
    api_keys,
    events,
    instances,
    operations,
    organizations,
    providers,
    servers,
    webhook_deliveries,
    webhook_endpoints,
)
from deployerp.domain.base import metadata

__all__ = ["SessionFactory", "metadata", "open_database", "session_factory"]

# The text of an error goes to logs, and a row's values do not belong there.
_HIDE_VALUES = True

SessionFactory = Callable[[], AsyncSession]


def open_database(url: str) -> AsyncEngine:
    """An engine for `sqlite+aiosqlite:///...` or `postgresql+asyncpg://...`."""
    if not url.startswith("sqlite"):
        # Small pools beat large ones when the work per statement is short.
        return create_async_engine(
            url, pool_size=4, max_overflow=8, pool_pre_ping=True, hide_parameters=_HIDE_VALUES
        )
    engine = create_async_engine(url, connect_args={"timeout": 30}, hide_parameters=_HIDE_VALUES)
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_immediate)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver's own BEGIN is deferred and would fail, not wait, when a read turns into a write.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def session_factory(engine: AsyncEngine) -> SessionFactory:
    return async_sessionmaker(engine, expire_on_commit=False)
