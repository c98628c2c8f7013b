"""Reads of a tenant's rows, as plain dictionaries, as cheaply as each database allows.

On PostgreSQL they go past the ORM, straight to asyncpg: a session costs three times what the query does.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from deployerp.database.connections import Codec, Connections
from deployerp.database.sessions import SessionFactory, tenant_transaction
from deployerp.database.statements import Row, Statement, run
from deployerp.database.tenancy import TENANT_ROLE, TENANT_SETTING, Tenant

_CONNECTIONS = 4
_SETTINGS = {
    # Never anything else: these connections cannot see what they are not told to.
    "role": TENANT_ROLE,
    "default_transaction_read_only": "on",
    # To plan takes longer than to read a page, and no value would change the plan: each list has its index.
    "plan_cache_mode": "force_generic_plan",
    # Searches note where the rows of an organization are: with less they note pages, and look through them.
    "work_mem": "16MB",
}


class Query(Statement):
    """A statement that reads; one of its parameters is `organization_id`."""

    @cached_property
    def text(self) -> str:
        """As PostgreSQL reads it.

        Row level security wants the organization set for the transaction. The statement does that itself,
        and is a transaction by itself: what it reads takes the id from what was set, so that this comes
        first. One message instead of four.
        """
        given = f"${self.names.index('organization_id') + 1}::UUID"
        rows = str(self._compiled).replace(given, "tenant.id")
        tenant = f"SELECT set_config('{TENANT_SETTING}', {given}::text, true)::uuid AS id"
        # The planner takes no part that has an offset into the rest, and so cannot turn the two around.
        pinned = f"SELECT * FROM ({rows}) AS found OFFSET 0"  # noqa: S608  (all of it is ours)
        return (
            f"WITH tenant AS MATERIALIZED ({tenant})"  # noqa: S608
            f" SELECT listed.* FROM tenant CROSS JOIN LATERAL ({pinned}) AS listed"
        )


class Reader(Protocol):
    async def rows(self, tenant: Tenant, query: Query, values: Mapping[str, Any]) -> list[Row]:
        """The rows of a query that belong to the tenant, whose parameters are added to `values`."""
        ...

    async def close(self) -> None: ...


class SessionReader:
    """Reads through a session, on any database."""

    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions

    async def rows(self, tenant: Tenant, query: Query, values: Mapping[str, Any]) -> list[Row]:
        async with tenant_transaction(self._sessions, tenant) as session:
            return await run(session, query, {**values, **tenant.values})

    async def close(self) -> None:
        pass


class PostgresReader:
    """Reads through connections of its own."""

    def __init__(self, url: str) -> None:
        self._connections = Connections(url, _CONNECTIONS, _SETTINGS, _CODECS)

    async def rows(self, tenant: Tenant, query: Query, values: Mapping[str, Any]) -> list[Row]:
        return await self._connections.run(query, {**values, **tenant.values})

    async def close(self) -> None:
        await self._connections.close()


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


# What goes into an answer as text needs no object in between.
_CODECS = (Codec("uuid", str, str), Codec("jsonb", _json, orjson.loads))


def open_reader(url: str, engine: AsyncEngine, sessions: SessionFactory) -> Reader:
    return PostgresReader(url) if engine.dialect.name == "postgresql" else SessionReader(sessions)
