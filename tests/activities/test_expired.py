"""What is kept for a time is forgotten afterwards, and nothing else is."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from deployerp.activities.expired import forget_expired
from deployerp.activities.records import Records
from deployerp.activities.sweep import Sweep
from deployerp.core.settings import Settings
from deployerp.database import base
from deployerp.database.base import new_id, utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.idempotency import IdempotencyRecord
from deployerp.domain.rate_windows import RateWindow
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.set_password_tokens import SetPasswordToken
from deployerp.domain.users import User
from deployerp.domain.webhooks.deliveries import WebhookAttempt, WebhookDelivery
from deployerp.drivers.temporal import Temporal
from tests.conftest import Client
from tests.webhooks import House

MODELS = (IdempotencyRecord, RateWindow, RefreshToken, SetPasswordToken)
MONTH = timedelta(days=30)


@pytest.fixture
async def house(sessions: SessionFactory) -> House:
    """With an endpoint that is told of everything."""
    house = await House(sessions).found()
    await house.listen("http://127.0.0.1:9/")
    return house


async def kept(sessions: SessionFactory, models: Sequence[type] = MODELS) -> list[int]:
    async with sessions() as session:
        return [await session.scalar(select(func.count()).select_from(model)) for model in models]


async def test_only_what_is_over_is_forgotten(client: Client, sessions: SessionFactory) -> None:
    now, organization_id = utc_now(), client.organization_id
    async with sessions() as session, session.begin():
        user = User(email="ada@example.com", email_verified_at=now, name="Ada")
        other = User(email="grace@example.com", email_verified_at=now, name="Grace")
        session.add_all([user, other])
        await session.flush()
        for expires_at, of in ((now - timedelta(seconds=1), user), (now + timedelta(hours=1), other)):
            session.add_all(
                [
                    IdempotencyRecord(
                        organization_id=organization_id,
                        key=uuid4().hex,
                        fingerprint="f",
                        status=201,
                        sealed_answer="s",
                        expires_at=expires_at,
                    ),
                    RefreshToken(
                        family_id=new_id(),
                        user_id=user.id,
                        organization_id=organization_id,
                        token_digest=uuid4().hex,
                        expires_at=expires_at,
                    ),
                    SetPasswordToken(
                        user_id=of.id,
                        organization_id=organization_id,
                        token_digest=uuid4().hex,
                        expires_at=expires_at,
                    ),
                    RateWindow(
                        subject=uuid4().hex, seconds=60, started_at=expires_at - timedelta(hours=1), spent=1
                    ),
                ]
            )
    assert await kept(sessions) == [2, 2, 2, 2]
    assert await forget_expired(sessions, MONTH) == 4
    assert await kept(sessions) == [1, 1, 1, 1]
    assert await forget_expired(sessions, MONTH) == 0


async def test_a_sweep_forgets_too(
    client: Client, sessions: SessionFactory, records: Records, settings: Settings
) -> None:
    answer = await client.request(
        "POST", "/v1/providers", {"name": "a", "kind": "docker"}, {"Idempotency-Key": "x"}
    )
    assert answer.status_code == 201
    async with sessions() as session, session.begin():
        await session.execute(update(IdempotencyRecord).values(expires_at=utc_now() - timedelta(days=1)))
    await Sweep(sessions, records, await Temporal.open(settings), settings).sweep()
    assert (await kept(sessions))[0] == 0


EVENTS = (Event, WebhookDelivery, WebhookAttempt)


async def written(house: House, ago: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event of some time ago, with a delivery and an attempt."""
    then = utc_now() - ago
    monkeypatch.setattr(
        base, "uuid7", lambda: UUID(int=(int(then.timestamp() * 1000) << 80) + uuid4().int % 2**62)
    )
    await house.happen()
    monkeypatch.undo()
    *_, delivery = sorted(await house.deliveries(), key=lambda each: each.created_at)
    async with house.sessions() as session, session.begin():
        session.add(WebhookAttempt(delivery_id=delivery.id, number=1))


async def test_events_are_forgotten_after_their_time_with_all_that_was_delivered_of_them(
    house: House, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in (29.99, 30.01, 45, 0):
        await written(house, timedelta(days=days), monkeypatch)
    assert await kept(sessions, EVENTS) == [4, 4, 4]
    assert await forget_expired(sessions, MONTH) == 2
    assert await kept(sessions, EVENTS) == [2, 2, 2]
    async with sessions() as session:
        assert set(await session.scalars(select(Event.sequence))) == {1, 4}
    assert await forget_expired(sessions, MONTH) == 0


async def test_so_many_are_forgotten_at_once_the_oldest_first(
    house: House, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in (45, 44, 43, 42, 41):
        await written(house, timedelta(days=days), monkeypatch)
    assert await forget_expired(sessions, MONTH, at_once=2) == 2
    assert await kept(sessions, EVENTS) == [3, 3, 3]
    async with sessions() as session:
        assert set(await session.scalars(select(Event.sequence))) == {3, 4, 5}
    assert await forget_expired(sessions, MONTH, at_once=2) == 2
    assert await forget_expired(sessions, MONTH, at_once=2) == 1
    assert await kept(sessions, EVENTS) == [0, 0, 0]


@pytest.mark.fault("24")
async def test_no_transaction_forgets_more_rows_than_allowed(
    house: House, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await house.listen("http://127.0.0.1:9/")
    await written(house, timedelta(days=45), monkeypatch)
    async with sessions() as session, session.begin():
        (tried,) = await session.scalars(select(WebhookAttempt))
        session.add_all([WebhookAttempt(delivery_id=tried.delivery_id, number=number) for number in (2, 3)])
    left = [await kept(sessions, EVENTS)]
    while left[-1] != [0, 0, 0]:
        await forget_expired(sessions, MONTH, at_once=2)
        left.append(await kept(sessions, EVENTS))
    assert left == [[1, 3, 3], [1, 1, 1], [0, 0, 0]]


async def test_a_sweep_keeps_events_as_long_as_the_settings_say(
    house: House,
    records: Records,
    sessions: SessionFactory,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await written(house, timedelta(days=3), monkeypatch)
    temporal = await Temporal.open(settings)
    await Sweep(sessions, records, temporal, settings).sweep()
    assert await kept(sessions, EVENTS) == [1, 1, 1]
    impatient = settings.model_copy(update={"event_retention_days": 2})
    await Sweep(sessions, records, temporal, impatient).sweep()
    assert await kept(sessions, EVENTS) == [0, 0, 0]
