"""A few connections of asyncpg's that are kept, for statements that are each a transaction by itself.

In place of asyncpg's pool: to take a connection from that and to give it back costs half of a short read.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy import make_url

from deployerp.database.statements import DIALECT, Row, Statement

# PostgreSQL's own, of every connection of the API and the workers: a process that hangs in the middle of a
# transaction must not keep its locks from all others. Keepalives find out about a machine that is gone.
LIMITS: Mapping[str, str] = {
    "idle_in_transaction_session_timeout": "15s",
    # Longer, so that whoever waits for a process that hangs gets the lock in the end.
    "lock_timeout": "25s",
    "statement_timeout": "60s",
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}


class Codec(NamedTuple):
    """How values of a type of PostgreSQL's are told from text, and told as text."""

    type: str
    encode: Callable[[Any], str]
    decode: Callable[[str], Any]


class Connections:
    """At most `count` of them, made when they are first needed, with these settings of PostgreSQL's."""

    def __init__(
        self, url: str, count: int, settings: Mapping[str, str], codecs: Sequence[Codec] = ()
    ) -> None:
        _, options = DIALECT.create_connect_args(make_url(url))
        options.pop("prepared_statement_cache_size", None)
        options["server_settings"] = {**LIMITS, **settings}
        self._options: dict[str, Any] = options
        self._codecs = codecs
        self._count = count
        self._places = asyncio.Semaphore(count)
        self._free: list[asyncpg.Connection] = []
        self._is_closed = False

    async def run(self, statement: Statement, values: Mapping[str, Any]) -> list[Row]:
        """What the statement returns; waits for a connection that is free."""
        async with self._places:
            connection = await self._take()
            try:
                found = await connection.fetch(statement.text, *statement.ordered(values))
            except BaseException:
                # It may be lost, or in the middle of what nobody waits for any more.
                connection.terminate()
                raise
            # Every statement is its own transaction, and with it ended all that was set.
            self._free.append(connection)
        return [dict(row) for row in found]

    async def _take(self) -> asyncpg.Connection:
        if self._is_closed:
            raise asyncpg.InterfaceError("the connections are closed")
        while self._free:
            connection = self._free.pop()
            # The database may have been started anew.
            if not connection.is_closed():
                return connection
        return await self._connect()

    async def _connect(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(**self._options)
        try:
            for name, encode, decode in self._codecs:
                await connection.set_type_codec(name, schema="pg_catalog", encoder=encode, decoder=decode)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def close(self) -> None:
        """Waits for what has been asked for; what comes later fails."""
        for _ in range(self._count):
            await self._places.acquire()
        self._is_closed = True
        for connection in self._free:
            await connection.close()
        for _ in range(self._count):
            self._places.release()
