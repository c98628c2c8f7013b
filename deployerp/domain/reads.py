"""Reads of one organization's rows, as plain dictionaries, as cheaply as each database allows.

On PostgreSQL they go past the ORM, straight to asyncpg: a session costs three times what the query does.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import orjson
from sqlalchemy import Select, make_url
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from deployerp.domain.database import TENANT_ROLE, TENANT_SETTING, SessionFactory, tenant_transaction

Row = dict[str, Any]
_CONNECTIONS = 4
_DIALECT: Any = PGDialect_asyncpg()  # type: ignore[no-untyped-call]


class Query:
    """A statement with named parameters, one of them `organization_id`; compiled once."""

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement

    @cached_property
    def compiled(self) -> tuple[str, tuple[str, ...]]:
        """PostgreSQL's text, and the names of its parameters in their order.

        Row level security wants the organization set for the transaction. The statement does that itself,
        and is a transaction by itself: what it reads takes the id from what was set, so that this comes
        first. One message instead of four.
        """
        compiled = self.statement.compile(dialect=_DIALECT)
        names = tuple(compiled.positiontup or ())
        given = f"${names.index('organization_id') + 1}::UUID"
        rows = str(compiled).replace(given, "tenant.id")
        tenant = f"SELECT set_config('{TENANT_SETTING}', {given}::text, true)::uuid AS id"
        # The planner takes no part that has an offset into the rest, and so cannot turn the two around.
        pinned = f"SELECT * FROM ({rows}) AS found OFFSET 0"  # noqa: S608  (all of it is ours)
        text = (
            f"WITH tenant AS MATERIALIZED ({tenant})"  # noqa: S608
            f" SELECT listed.* FROM tenant CROSS JOIN LATERAL ({pinned}) AS listed"
        )
        return text, names


class Reader(Protocol):
    async def rows(self, organization_id: UUID, query: Query, values: Mapping[str, Any]) -> list[Row]:
        """The rows of a query that belong to the organization."""
        ...

    async def close(self) -> None: ...


class SessionReader:
    """Reads through a session, on any database."""

    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions

    async def rows(self, organization_id: UUID, query: Query, values: Mapping[str, Any]) -> list[Row]:
        async with tenant_transaction(self._sessions, organization_id) as session:
            found = await session.execute(query.statement, dict(values))
            return [dict(row) for row in found.mappings()]

    async def close(self) -> None:
        pass


class PostgresReader:
    """Reads through a small pool of its own."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, url: str) -> "PostgresReader":
        _, options = _DIALECT.create_connect_args(make_url(url))
        options.pop("prepared_statement_cache_size", None)
        # Opened with the first request, so that a database that is away does not keep the API from starting.
        pool = await asyncpg.create_pool(
            **options,
            min_size=0,
            max_size=_CONNECTIONS,
            init=_read_plainly,
            # Every statement is its own transaction, and with it ends all that was set.
            reset=_nothing_to_reset,
            # Never anything else: these connections cannot see what they are not told to.
            server_settings={"role": TENANT_ROLE, "default_transaction_read_only": "on"},
        )
        return cls(pool)

    async def rows(self, organization_id: UUID, query: Query, values: Mapping[str, Any]) -> list[Row]:
        text, names = query.compiled
        async with self._pool.acquire() as connection:
            found = await connection.fetch(text, *(values[name] for name in names))
        return [dict(row) for row in found]

    async def close(self) -> None:
        await self._pool.close()


async def open_reader(url: str, engine: AsyncEngine, sessions: SessionFactory) -> Reader:
    if engine.dialect.name == "postgresql":
        return await PostgresReader.open(url)
    return SessionReader(sessions)


async def _read_plainly(connection: asyncpg.Connection) -> None:
    # What goes into an answer as text needs no object in between.
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=str, decoder=str)
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=lambda value: orjson.dumps(value).decode(), decoder=orjson.loads
    )


async def _nothing_to_reset(_connection: asyncpg.Connection) -> None:
    pass
