"""Sessions on SQLite and PostgreSQL that behave alike."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import asyncpg
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, InternalError, InvalidRequestError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from deployerp.database.connections import LIMITS
from deployerp.database.statements import DRIVER
from deployerp.database.tenancy import TENANT_ROLE, TENANT_SETTING, Tenant

__all__ = [
    "AWAY_STATES",
    "SessionFactory",
    "as_control_plane",
    "open_database",
    "session_factory",
    "sqlstate_of",
    "tenant_transaction",
]

# The text of an error goes to logs, and a row's values do not belong there.
_HIDE_VALUES = True

# PostgreSQL's, in appendix A of its manual: no connection; no room for one more, in memory or on the disk;
# it stops, has broken down, or does not take connections yet; one of `LIMITS` was reached.
AWAY_STATES = ("08", "53", "57P01", "57P02", "57P03", "55P03", "57014", "25P03")

SessionFactory = async_sessionmaker[AsyncSession]


class _Pool(AsyncAdaptedQueuePool):
    """Closes also what is given back after its end, as by whoever was cancelled and still cleans up."""

    _is_over = False

    def dispose(self) -> None:
        self._is_over = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        if self._is_over:
            super().dispose()


def open_database(url: str, limits: Mapping[str, str] = LIMITS) -> AsyncEngine:
    """An engine for `sqlite+aiosqlite:///...` or `postgresql+asyncpg://...`, there with these settings."""
    if not url.startswith("sqlite"):
        # Small pools beat large ones when the work per statement is short. More than its size a pool does
        # not keep: connections beyond it would be made and closed with every request.
        engine = create_async_engine(
            url,
            poolclass=_Pool,
            pool_size=8,
            max_overflow=4,
            hide_parameters=_HIDE_VALUES,
            connect_args={"server_settings": dict(limits)},
        )
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        return engine
    engine = create_async_engine(
        url, poolclass=_Pool, connect_args={"timeout": 30}, hide_parameters=_HIDE_VALUES
    )
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_immediate)
    event.listen(engine.sync_engine, "invalidate", _roll_back)
    return engine


def sqlstate_of(error: Exception) -> str:
    """What PostgreSQL calls an error of its own, through SQLAlchemy or not; nothing for any other."""
    of_driver = error.orig if isinstance(error, DBAPIError) else error
    return getattr(of_driver, "sqlstate", None) or ""


def _refuse_closed(connection: Any, *_: object) -> None:
    """Has the pool make another connection for one that the server has closed meanwhile."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver's own BEGIN is deferred and would fail, not wait, when a read turns into a write.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _roll_back(connection: Any, *_: object) -> None:
    # Closed in the middle of a statement it would hold its lock until it is collected.
    if connection is not None:
        connection.rollback()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@asynccontextmanager
async def tenant_transaction(sessions: SessionFactory, tenant: Tenant) -> AsyncIterator[AsyncSession]:
    """A transaction that sees and writes a tenant's rows; committed at the end of the block.

    On PostgreSQL the database itself sees to that; what is set here ends with the transaction.
    """
    engine: AsyncEngine = sessions.kw["bind"]
    if engine.dialect.name != "postgresql":
        async with sessions.begin() as session:
            yield session
        return
    async with engine.connect() as connection, _begin_tenant(connection, tenant) as driver:
        # One that is not used costs nothing.
        session = sessions(bind=connection, info={DRIVER: driver}, sync_session_class=_Joined)
        yield session
        await session.flush()


class _Joined(Session):
    """A session in a transaction that is not its own; what it could not do must not seem to be done."""

    def commit(self) -> NoReturn:
        raise InvalidRequestError("a tenant's transaction is committed at the end of its block")

    def rollback(self) -> NoReturn:
        raise InvalidRequestError("a tenant's transaction is taken back by an error that leaves its block")


@asynccontextmanager
async def _begin_tenant(connection: AsyncConnection, tenant: Tenant) -> AsyncIterator[asyncpg.Connection]:
    """The driver, in a transaction of its own: one of SQLAlchemy's would cost three times as much."""
    await connection.execution_options(isolation_level="AUTOCOMMIT")
    driver: Any = (await connection.get_raw_connection()).driver_connection
    try:
        await driver.execute(_BEGIN.format(tenant.organization_id))
        yield driver
        if await driver.execute("COMMIT") != "COMMIT":
            # That is how PostgreSQL ends a transaction of which a statement had failed.
            raise InternalError("COMMIT", None, Exception("nothing was committed: a statement had failed"))
    except BaseException:
        await _take_back(connection, driver)
        raise


async def _take_back(connection: AsyncConnection, driver: asyncpg.Connection) -> None:
    try:
        await driver.execute("ROLLBACK")
    except BaseException as error:
        # It may still be the tenant's: nobody else gets it.
        await connection.invalidate()
        if not isinstance(error, Exception):
            raise


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


# In one message, which takes no parameters; the id is a UUID, and no text of anybody's.
_BEGIN = f"BEGIN; SET LOCAL ROLE {TENANT_ROLE}; SET LOCAL {TENANT_SETTING} = '{{}}'"
_BECOME = text("SELECT set_config('role', :role, true)")


def session_factory(engine: AsyncEngine) -> SessionFactory:
    return async_sessionmaker(engine, expire_on_commit=False)
