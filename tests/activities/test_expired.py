"""What is kept for a time is forgotten afterwards, and nothing else is."""

from datetime import timedelta
from uuid import uuid4

from sqlalchemy import func, select, update
from sqlmodel import col

from deployerp.activities.expired import forget_expired
from deployerp.activities.operations import OperationActivities
from deployerp.activities.records import Records
from deployerp.domain.base import new_id, utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.idempotency import IdempotencyRecord
from deployerp.domain.rate_windows import RateWindow
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.settings import Settings
from deployerp.domain.users import User
from deployerp.drivers.temporal import Temporal
from tests.conftest import Client

MODELS = (IdempotencyRecord, RateWindow, RefreshToken)


async def kept(sessions: SessionFactory) -> list[int]:
    async with sessions() as session:
        return [await session.scalar(select(func.count()).select_from(model)) for model in MODELS]


async def test_only_what_is_over_is_forgotten(client: Client, sessions: SessionFactory) -> None:
    now, organization_id = utc_now(), client.organization_id
    async with sessions() as session, session.begin():
        user = User(email="ada@example.com", name="Ada")
        session.add(user)
        await session.flush()
        for expires_at in (now - timedelta(seconds=1), now + timedelta(hours=1)):
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
                    RateWindow(
                        subject=uuid4().hex, seconds=60, started_at=expires_at - timedelta(hours=1), spent=1
                    ),
                ]
            )
    assert await kept(sessions) == [2, 2, 2]
    assert await forget_expired(sessions) == 3
    assert await kept(sessions) == [1, 1, 1]
    assert await forget_expired(sessions) == 0


async def test_a_sweep_forgets_too(
    client: Client, sessions: SessionFactory, records: Records, settings: Settings
) -> None:
    answer = await client.request(
        "POST", "/v1/providers", {"name": "a", "kind": "docker"}, {"Idempotency-Key": "x"}
    )
    assert answer.status_code == 201
    async with sessions() as session, session.begin():
        await session.execute(
            update(IdempotencyRecord)
            .where(col(IdempotencyRecord.key) == "x")
            .values(expires_at=utc_now() - timedelta(days=1))
        )
    await OperationActivities(sessions, records, await Temporal.open(settings)).sweep()
    assert (await kept(sessions))[0] == 0
