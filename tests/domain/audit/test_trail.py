"""What a transaction made, changed and deleted, as the audit log tells it."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel, col

from deployerp.database.base import metadata
from deployerp.database.sessions import SessionFactory
from deployerp.database.statements import put
from deployerp.domain.api_keys import ApiKey, new_api_key
from deployerp.domain.audit.log import ChangeTracker, snapshot
from deployerp.domain.events.event import Event
from deployerp.domain.organizations import Organization
from deployerp.domain.providers import Provider


@pytest.fixture
async def organization(sessions: SessionFactory) -> Organization:
    made = Organization(name="acme", slug=f"acme-{uuid4().hex}")
    async with sessions() as session, session.begin():
        session.add(made)
    return made


@pytest.fixture
async def session(sessions: SessionFactory, organization: Organization) -> AsyncIterator[AsyncSession]:
    async with sessions() as opened, opened.begin():
        yield opened


@pytest.fixture
async def key(sessions: SessionFactory, organization: Organization) -> ApiKey:
    """A key that was there before the session."""
    made, _ = new_api_key(organization.id, "first", "read")
    async with sessions() as other, other.begin():
        other.add(made)
    return made


async def told(session: AsyncSession, trail: ChangeTracker) -> list[tuple[type[SQLModel], object, object]]:
    await session.flush()
    return [(type(change.record), change.before, change.after) for change in trail.changes()]


def test_a_snapshot_is_json_in_camel_case_without_secrets(organization: Organization) -> None:
    key, _ = new_api_key(organization.id, "first", "read", datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC))
    shown = snapshot(key)
    assert shown == {
        "id": str(key.id),
        "createdAt": key.created_at.isoformat().replace("+00:00", "Z"),
        "organizationId": str(organization.id),
        "name": "first",
        "level": "read",
        "keyId": key.key_id,
        "expiresAt": "2030-01-02T03:04:05.000006Z",
        "lastUsedAt": None,
        "revokedAt": None,
    }
    assert json.loads(json.dumps(shown)) == shown


def models() -> list[type[SQLModel]]:
    registry = Organization.__mapper__.registry  # type: ignore[attr-defined]
    return [mapper.class_ for mapper in registry.mappers]


# The chain's own hash, and the time until which a secret is good.
NO_SECRETS = {"password_changed_at", "hash", "old_secret_until"}


def test_no_column_with_a_secret_is_told() -> None:
    suspicious = ("sealed", "password", "secret", "token", "digest", "private", "credential", "hash")
    assert {model.__tablename__ for model in models()} == set(metadata.tables)
    for model in models():
        columns = model.__table__.columns.keys()  # type: ignore[attr-defined]
        record = model(**{name: f"the {name}" for name in columns})
        open_columns = {value.removeprefix("the ") for value in snapshot(record).values()}
        leaks = {name for name in open_columns if any(word in name for word in suspicious)} - NO_SECRETS
        assert not leaks, model


async def test_what_is_only_read_is_no_change(session: AsyncSession, key: ApiKey) -> None:
    trail = ChangeTracker(session)
    (await session.scalars(select(ApiKey))).all()
    assert await told(session, trail) == []


async def test_what_is_made_has_no_before(session: AsyncSession, organization: Organization) -> None:
    trail = ChangeTracker(session)
    key, _ = new_api_key(organization.id, "second", "write")
    session.add(key)
    assert await told(session, trail) == [(ApiKey, None, snapshot(key))]


async def test_what_is_put_past_the_session_shows_once_it_is_noted(
    session: AsyncSession, organization: Organization
) -> None:
    trail = ChangeTracker(session)
    key, _ = new_api_key(organization.id, "second", "write")
    await put(session, key)
    assert await told(session, trail) == []
    trail.add(key)
    assert await told(session, trail) == [(ApiKey, None, snapshot(key))]


async def test_what_is_changed_has_both(session: AsyncSession, key: ApiKey) -> None:
    trail = ChangeTracker(session)
    found = await session.get_one(ApiKey, key.id)
    found.name = "renamed"
    before = snapshot(key)
    assert await told(session, trail) == [(ApiKey, before, before | {"name": "renamed"})]


async def test_what_is_deleted_has_no_after(session: AsyncSession, key: ApiKey) -> None:
    trail = ChangeTracker(session)
    await session.delete(await session.get_one(ApiKey, key.id))
    assert await told(session, trail) == [(ApiKey, snapshot(key), None)]


async def test_several_flushes_are_one_change(
    session: AsyncSession, key: ApiKey, organization: Organization
) -> None:
    trail = ChangeTracker(session)
    made, _ = new_api_key(organization.id, "second", "write")
    session.add(made)
    found = await session.get_one(ApiKey, key.id)
    for name in ("two", "three"):
        found.name = made.name = name
        await session.flush()
    assert await told(session, trail) == [
        (ApiKey, None, snapshot(made) | {"name": "three"}),
        (ApiKey, snapshot(key), snapshot(key) | {"name": "three"}),
    ]


async def test_what_is_made_and_deleted_or_changed_back_is_no_change(
    session: AsyncSession, key: ApiKey, organization: Organization
) -> None:
    trail = ChangeTracker(session)
    made, _ = new_api_key(organization.id, "second", "write")
    session.add(made)
    found = await session.get_one(ApiKey, key.id)
    found.name = "two"
    await session.flush()
    found.name = "first"
    await session.delete(made)
    assert await told(session, trail) == []


async def test_a_changed_secret_is_a_change_that_does_not_tell_it(
    session: AsyncSession, organization: Organization
) -> None:
    provider = Provider(organization_id=organization.id, name="one", kind="docker", sealed_credentials="old")
    session.add(provider)
    await session.flush()
    trail = ChangeTracker(session)
    provider.sealed_credentials = "new"
    assert await told(session, trail) == [(Provider, snapshot(provider), snapshot(provider))]


async def test_a_statement_shows_for_the_records_at_hand(session: AsyncSession, key: ApiKey) -> None:
    trail = ChangeTracker(session)
    found = await session.get_one(ApiKey, key.id)
    await session.execute(update(ApiKey).where(col(ApiKey.id) == key.id).values(level="admin"))
    await session.refresh(found)
    before = snapshot(key)
    assert await told(session, trail) == [(ApiKey, before, before | {"level": "admin"})]


async def test_a_statement_that_finds_nothing_is_no_change(session: AsyncSession, key: ApiKey) -> None:
    trail = ChangeTracker(session)
    _found = await session.get_one(ApiKey, key.id)
    moved = update(ApiKey).where(col(ApiKey.id) == key.id, col(ApiKey.level) == "admin").values(name="two")
    await session.execute(moved)
    assert await told(session, trail) == []


async def test_a_statement_that_deletes_shows(session: AsyncSession, key: ApiKey) -> None:
    trail = ChangeTracker(session)
    _found = await session.get_one(ApiKey, key.id)
    await session.execute(delete(ApiKey).where(col(ApiKey.id) == key.id))
    assert await told(session, trail) == [(ApiKey, snapshot(key), None)]


async def test_a_statement_of_another_table_does_not_show(
    session: AsyncSession, key: ApiKey, organization: Organization
) -> None:
    trail = ChangeTracker(session)
    _found = await session.get_one(ApiKey, key.id)
    await session.execute(update(Organization).values(event_sequence=3))
    assert await told(session, trail) == []


async def test_what_a_savepoint_takes_back_is_no_change(
    session: AsyncSession, key: ApiKey, organization: Organization
) -> None:
    trail = ChangeTracker(session)
    double, _ = new_api_key(organization.id, "second", "write")
    double.key_id = key.key_id

    async def add_double() -> None:
        async with session.begin_nested():
            session.add(double)

    with pytest.raises(IntegrityError):
        await add_double()
    assert await told(session, trail) == []


async def test_documents_are_compared_by_what_they_hold(
    session: AsyncSession, organization: Organization
) -> None:
    event = Event(
        organization_id=organization.id,
        sequence=1,
        type="server.created",
        resource_type="server",
        resource_id=uuid4(),
        data={"names": ["one"]},
    )
    session.add(event)
    await session.flush()
    trail = ChangeTracker(session)
    event.data = {"names": ["one"]}
    assert await told(session, trail) == []
    event.data = {"names": ["two"]}
    ((_, before, after),) = await told(session, trail)
    assert (before["data"], after["data"]) == ({"names": ["one"]}, {"names": ["two"]})  # type: ignore[index]


async def test_trails_of_two_sessions_are_apart(
    sessions: SessionFactory, session: AsyncSession, organization: Organization
) -> None:
    trail = ChangeTracker(session)
    # SQLite has one writer: the other session only says what it would write.
    other = sessions()
    ChangeTracker(other)
    other.add(new_api_key(organization.id, "second", "write")[0])
    assert await told(session, trail) == []
    await other.close()


async def test_rows_without_records_do_not_show(session: AsyncSession, organization: Organization) -> None:
    trail = ChangeTracker(session)
    key, _ = new_api_key(organization.id, "second", "write")
    await session.execute(insert(ApiKey), [key.model_dump()])
    assert await told(session, trail) == []
