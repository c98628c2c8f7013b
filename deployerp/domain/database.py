"""Sessions on SQLite and PostgreSQL that behave alike."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from deployerp.domain import (  # noqa: F401  (their tables register in the metadata)
    api_keys,
    audit_log,
    events,
    idempotency,
    instances,
    operations,
    organizations,
    providers,
    rate_windows,
    refresh_tokens,
    servers,
    users,
    webhook_deliveries,
    webhook_endpoints,
)
from deployerp.domain.base import metadata

__all__ = [
    "TENANT_ROLE",
    "TENANT_SETTING",
    "SessionFactory",
    "as_control_plane",
    "metadata",
    "open_database",
    "session_factory",
    "tenant_transaction",
]

# The text of an error goes to logs, and a row's values do not belong there.
_HIDE_VALUES = True

# What requests of a tenant are on PostgreSQL, where row level security holds them to their organization.
TENANT_ROLE = "deployerp_tenant"
TENANT_SETTING = "deployerp.organization_id"

SessionFactory = Callable[[], AsyncSession]


def open_database(url: str) -> AsyncEngine:
    """An engine for `sqlite+aiosqlite:///...` or `postgresql+asyncpg://...`."""
    if not url.startswith("sqlite"):
        # Small pools beat large ones when the work per statement is short. More than its size a pool does
        # not keep: connections beyond it would be made and closed with every request.
        return create_async_engine(url, pool_size=8, max_overflow=4, hide_parameters=_HIDE_VALUES)
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


@asynccontextmanager
async def tenant_transaction(sessions: SessionFactory, organization_id: UUID) -> AsyncIterator[AsyncSession]:
    """A transaction that sees and writes one organization's rows; committed at the end of the block.

    On PostgreSQL the database itself sees to that; what is set here ends with the transaction.
    """
    async with sessions() as session, session.begin():
        if session.get_bind().dialect.name == "postgresql":
            await session.execute(_ENTER, {"role": TENANT_ROLE, "organization": str(organization_id)})
        yield session


@asynccontextmanager
async def as_control_plane(session: AsyncSession) -> AsyncIterator[None]:
    """A part of a tenant's transaction that reads and writes what belongs to no organization, such as users.

    An error in it must end the transaction: the session is the tenant's again only at the end of the block.
    """
    walled = session.get_bind().dialect.name == "postgresql"
    await session.flush()
    if walled:
        await session.execute(_BECOME, {"role": "none"})
    yield
    await session.flush()
    if walled:
        await session.execute(_BECOME, {"role": TENANT_ROLE})


_ENTER = text(f"SELECT set_config('role', :role, true), set_config('{TENANT_SETTING}', :organization, true)")
_BECOME = text("SELECT set_config('role', :role, true)")


def session_factory(engine: AsyncEngine) -> SessionFactory:
    return async_sessionmaker(engine, expire_on_commit=False)
