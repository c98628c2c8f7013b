"""What is kept for a time and then forgotten."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Delete, delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.events import Event
from deployerp.domain.idempotency import IdempotencyRecord
from deployerp.domain.rate_windows import forget_ended
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.webhook_deliveries import WebhookAttempt, WebhookDelivery

# So many at a time that nobody waits for it; the next sweep goes on.
AT_ONCE = 5_000


async def forget_expired(sessions: SessionFactory, keep_events: timedelta, at_once: int = AT_ONCE) -> int:
    """Deletes kept answers, refresh tokens, rate windows and events whose time is over; says how many.

    With an event go its deliveries, also those that have not come to their end, and their attempts.
    """
    now, gone = utc_now(), 0
    for model in (IdempotencyRecord, RefreshToken):
        async with sessions() as session, session.begin():
            over = select(col(model.id)).where(col(model.expires_at) < now).limit(at_once)
            gone += await _count(session, delete(model).where(col(model.id).in_(over)))
    async with sessions() as session, session.begin():
        gone += await forget_ended(session, now)
    async with sessions() as session, session.begin():
        gone += await _forget_events(session, now - keep_events, at_once)
    return gone


async def _forget_events(session: AsyncSession, before: datetime, at_once: int) -> int:
    # Ids sort by time, and have an index that times do not have.
    end = _first_id(before)
    old = select(col(Event.id)).where(col(Event.id) < end).order_by(col(Event.id))
    end = await session.scalar(old.offset(at_once).limit(1)) or end
    deliveries = select(col(WebhookDelivery.id)).where(col(WebhookDelivery.event_id) < end)
    # Whoever records a try of one of them at this moment is waited for.
    await session.execute(deliveries.order_by(col(WebhookDelivery.id)).with_for_update())
    await session.execute(delete(WebhookAttempt).where(col(WebhookAttempt.delivery_id).in_(deliveries)))
    await session.execute(delete(WebhookDelivery).where(col(WebhookDelivery.event_id) < end))
    return await _count(session, delete(Event).where(col(Event.id) < end))


def _first_id(at: datetime) -> UUID:
    """The least UUID version 7 of a millisecond."""
    return UUID(int=int(at.timestamp() * 1000) << 80)


async def _count(session: AsyncSession, deletion: Delete) -> int:
    connection = await session.connection()
    return (await connection.execute(deletion)).rowcount
