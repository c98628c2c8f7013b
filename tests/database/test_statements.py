"""Statements past the ORM do on both databases what the session would, within its transaction."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import bindparam, select, text
from sqlalchemy.exc import IntegrityError, InternalError, InvalidRequestError
from sqlmodel import col

from deployerp.database.sessions import SessionFactory, tenant_transaction
from deployerp.database.statements import DRIVER, Statement, put, run
from deployerp.database.tenancy import Tenant
from deployerp.domain.events.event import Event
from deployerp.domain.organizations import Organization
from deployerp.domain.providers import Provider
from deployerp.domain.users import User

one_database = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
Lose = Callable[[asyncpg.Connection], Awaitable[None]]
_NAMES = Statement(select(col(Provider.name)).where(col(Provider.kind) == bindparam("kind")))


@pytest.fixture
async def organization_id(sessions: SessionFactory) -> UUID:
    made = Organization(name="acme", slug=f"acme-{uuid4().hex}")
    async with sessions.begin() as session:
        session.add(made)
    return made.id


def provider(organization_id: UUID, name: str) -> Provider:
    return Provider(organization_id=organization_id, name=name, kind="docker", sealed_credentials="sealed")


async def names(sessions: SessionFactory) -> set[str]:
    async with sessions() as session:
        return {row["name"] for row in await run(session, _NAMES, {"kind": "docker"})}


async def count(sessions: SessionFactory, which: str) -> int:
    """Of PostgreSQL's other backends."""
    statement = f"SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {which}"
    # A transaction of its own: within one the answer does not change.
    async with sessions() as session:
        return await session.scalar(text(statement)) or 0


async def test_what_is_put_is_what_the_session_reads(sessions: SessionFactory, organization_id: UUID) -> None:
    event = Event(
        organization_id=organization_id,
        sequence=1,
        type="server.created",
        resource_type="server",
        resource_id=uuid4(),
        data={"names": ["one", None]},
    )
    async with sessions.begin() as session:
        await put(session, event)
        found = await session.get_one(Event, event.id)
        assert found is not event
        assert found.model_dump() == event.model_dump()


async def test_the_session_and_what_goes_past_it_are_one_transaction(
    sessions: SessionFactory, organization_id: UUID
) -> None:
    async with tenant_transaction(sessions, Tenant(organization_id)) as session:
        session.add(provider(organization_id, "through it"))
        await session.flush()
        await put(session, provider(organization_id, "past it"))
        found = await run(session, _NAMES, {"kind": "docker"})
        assert {row["name"] for row in found} == {"through it", "past it"}
        assert len((await session.scalars(select(Provider))).all()) == 2
        # Another one does not see it yet; SQLite has one writer, and whoever reads waits for it.
        assert session.info.get(DRIVER) is None or await names(sessions) == set()
    assert await names(sessions) == {"through it", "past it"}


async def test_what_fails_takes_back_both(sessions: SessionFactory, organization_id: UUID) -> None:
    async def fail() -> None:
        async with tenant_transaction(sessions, Tenant(organization_id)) as session:
            session.add(provider(organization_id, "through it"))
            await put(session, provider(organization_id, "past it"))
            await session.flush()
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        await fail()
    assert await names(sessions) == set()


async def test_a_rule_that_is_broken_is_one_error(sessions: SessionFactory, organization_id: UUID) -> None:
    async def twice() -> None:
        async with tenant_transaction(sessions, Tenant(organization_id)) as session:
            await put(session, provider(organization_id, "one"))
            await put(session, provider(organization_id, "one"))

    with pytest.raises(IntegrityError):
        await twice()
    assert await names(sessions) == set()


@one_database
async def test_a_failure_that_somebody_hides_is_not_taken_for_a_commit(
    sessions: SessionFactory, organization_id: UUID
) -> None:
    async def hide() -> None:
        async with tenant_transaction(sessions, Tenant(organization_id)) as session:
            await put(session, provider(organization_id, "one"))
            with suppress(IntegrityError):
                await put(session, provider(organization_id, "one"))

    with pytest.raises(InternalError, match="nothing was committed"):
        await hide()
    assert await names(sessions) == set()


@one_database
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_the_session_does_not_end_the_transaction(
    sessions: SessionFactory, organization_id: UUID, end: str
) -> None:
    async def end_it() -> None:
        async with tenant_transaction(sessions, Tenant(organization_id)) as session:
            await put(session, provider(organization_id, "one"))
            await getattr(session, end)()

    with pytest.raises(InvalidRequestError, match="its block"):
        await end_it()
    assert await names(sessions) == set()


@one_database
async def test_a_tenant_puts_nothing_into_another_organization(
    sessions: SessionFactory, organization_id: UUID
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with tenant_transaction(sessions, Tenant(uuid4())) as session:
            await put(session, provider(organization_id, "one"))


async def test_a_transaction_that_is_cut_off_holds_no_lock(sessions: SessionFactory) -> None:
    async def write_on() -> None:
        while True:
            async with sessions.begin() as session:
                await session.execute(text("UPDATE organizations SET event_sequence = 1"))
                await session.execute(text("SELECT 1"))

    for number in range(40):
        writing = asyncio.create_task(write_on())
        # Each time somewhere else in it.
        await asyncio.sleep(0.001 + number / 4_000)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        async with sessions.begin() as session:
            await session.execute(text("UPDATE organizations SET event_sequence = 2"))


@one_database
async def test_nothing_of_a_transaction_stays_with_its_connection(
    sessions: SessionFactory, organization_id: UUID
) -> None:
    async def cut_off() -> None:
        async with tenant_transaction(sessions, Tenant(organization_id)) as session:
            await session.info[DRIVER].fetch("SELECT pg_sleep(60)")

    tries = [asyncio.create_task(cut_off()) for _ in range(4)]
    while await count(sessions, "query LIKE '%pg_sleep(60)%' AND state = 'active'") != len(tries):
        await asyncio.sleep(0.01)
    for each in tries:
        each.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError)
        for each in await asyncio.gather(*tries, return_exceptions=True)
    )
    told = text("SELECT current_user, coalesce(current_setting('deployerp.organization_id', true), '')")
    held = [sessions() for _ in range(8)]
    assert {tuple((await session.execute(told)).one()) for session in held} == {("postgres", "")}
    for session in held:
        await session.close()


@pytest.fixture
async def lose(sessions: SessionFactory) -> AsyncIterator[Lose]:
    """Has the server close a connection."""
    async with sessions() as other:
        await other.connection()

        async def lost(driver: asyncpg.Connection) -> None:
            await other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": driver.get_server_pid()})
            while not driver.is_closed():
                await asyncio.sleep(0.01)

        yield lost


@one_database
async def test_a_connection_that_the_server_has_closed_is_made_anew(
    sessions: SessionFactory, organization_id: UUID, lose: Lose
) -> None:
    async with tenant_transaction(sessions, Tenant(organization_id)) as session:
        driver = session.info[DRIVER]
    await lose(driver)
    async with tenant_transaction(sessions, Tenant(organization_id)) as session:
        assert session.info[DRIVER] is not driver


@one_database
async def test_a_connection_that_is_lost_ends_the_transaction(
    sessions: SessionFactory, organization_id: UUID, lose: Lose
) -> None:
    async def put_and_lose() -> None:
        async with tenant_transaction(sessions, Tenant(organization_id)) as session:
            await put(session, provider(organization_id, "one"))
            await lose(session.info[DRIVER])

    with pytest.raises(asyncpg.InterfaceError, match="connection is closed"):
        await put_and_lose()
    assert await names(sessions) == set()


async def test_a_new_record_has_what_is_given_and_defaults_of_its_own(organization_id: UUID) -> None:
    one, other = provider(organization_id, "one"), provider(organization_id, "other")
    assert one.id != other.id
    assert (one.created_at, one.deleted_at) == (one.updated_at, None)
    user = User(email="ada@example.com", name="Ada", id=one.id)
    assert (user.id, user.password_hash) == (one.id, None)
    assert user.model_fields_set == {"email", "name", "id"}
