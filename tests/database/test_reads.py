"""Reads of one organization's rows: whatever becomes of a connection, the next read has a good one."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import Uuid, bindparam, literal_column, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployerp.database.reads import Query, Reader, open_reader
from deployerp.database.sessions import SessionFactory
from deployerp.database.tenancy import Tenant

ASKED_FOR = bindparam("organization_id", type_=Uuid())
one_database = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


def query(column: str) -> Query:
    return Query(select(literal_column(column).label("told")).where(ASKED_FOR.is_not(None)))


WHOSE, SLOW, BROKEN = query("pg_backend_pid()"), query("pg_sleep(30)"), query("1 / 0")


async def told(reader: Reader, asked: Query = WHOSE, of: UUID | None = None) -> object:
    of = of or uuid4()
    (row,) = await reader.rows(Tenant(of), asked, {})
    return row["told"]


@pytest.fixture
async def reader(database_url: str, database: AsyncEngine, sessions: SessionFactory) -> AsyncIterator[Reader]:
    opened = open_reader(database_url, database, sessions)
    yield opened
    await opened.close()


async def test_a_read_tells_what_the_database_has(reader: Reader) -> None:
    assert await told(reader, query("6 * 7")) == 42


@one_database
async def test_a_connection_is_used_again(reader: Reader) -> None:
    assert await told(reader) == await told(reader)


@one_database
async def test_at_most_four_read_at_once_and_the_others_wait(reader: Reader) -> None:
    a_tenth = query("pg_sleep(0.1)::text || pg_backend_pid()")
    found = await asyncio.gather(*(told(reader, a_tenth) for _ in range(20)))
    assert len(set(found)) == 4


@one_database
async def test_a_read_that_fails_leaves_the_reader_as_it_was(reader: Reader) -> None:
    for _ in range(10):
        with pytest.raises(asyncpg.DivisionByZeroError):
            await told(reader, BROKEN)
    assert await told(reader)


@one_database
async def test_what_is_given_up_does_not_keep_the_next_one_waiting(reader: Reader) -> None:
    given_up = [asyncio.create_task(told(reader, SLOW)) for _ in range(10)]
    await asyncio.sleep(0.3)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    async with asyncio.timeout(10):
        assert await told(reader)


@one_database
async def test_a_connection_that_was_lost_while_it_waited_is_replaced(
    reader: Reader, sessions: SessionFactory
) -> None:
    lost = await told(reader)
    async with sessions() as session:
        assert await session.scalar(text("SELECT pg_terminate_backend(:pid)"), {"pid": lost})
    # The news of it is on its way.
    await asyncio.sleep(0.3)
    assert await told(reader) != lost


@one_database
async def test_a_connection_that_cannot_be_made_ready_is_not_left_open(
    reader: Reader, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ConnectionError("it has just gone")

    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Connection, "set_type_codec", fail)
        with pytest.raises(ConnectionError):
            await told(reader)
    count = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    async with sessions() as session, asyncio.timeout(5):
        # The one that counts stays.
        while await session.scalar(count) > 1:
            await session.execute(text("SELECT pg_sleep(0.05), pg_stat_clear_snapshot()"))


@one_database
async def test_it_closes_when_what_is_being_read_has_come(
    database_url: str, database: AsyncEngine, sessions: SessionFactory
) -> None:
    reader = open_reader(database_url, database, sessions)
    reading = asyncio.create_task(told(reader, query("pg_sleep(0.5)::text || 'read'")))
    await asyncio.sleep(0.2)
    await reader.close()
    assert reading.done()
    assert str(await reading).endswith("read")


@one_database
async def test_a_read_after_the_end_fails_instead_of_waiting(reader: Reader) -> None:
    assert await told(reader)
    await reader.close()
    async with asyncio.timeout(10):
        with pytest.raises(asyncpg.InterfaceError, match="closed"):
            await told(reader)
