"""What is kept for a time and then forgotten."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Delete, Exists, delete, exists, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped
from sqlmodel import col

from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.idempotency import IdempotencyRecord
from deployerp.domain.rate_windows import forget_ended
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.set_password_tokens import SetPasswordToken
from deployerp.domain.webhooks.deliveries import WebhookAttempt, WebhookDelivery

# So many rows of a table at a time that nobody waits for it; the next sweep goes on.
AT_ONCE = 5_000


async def forget_expired(sessions: SessionFactory, keep_events: timedelta, at_once: int = AT_ONCE) -> int:
    """Deletes kept answers, tokens of users, rate windows and events whose time is over; says how many.

    With an event go its deliveries, also those that have not come to their end, and their attempts. No
    transaction deletes more than `at_once` rows.
    """
    now, gone = utc_now(), 0
    for model in (IdempotencyRecord, RefreshToken, SetPasswordToken):
        async with sessions() as session, session.begin():
            over = select(col(model.id)).where(col(model.expires_at) < now).limit(at_once)
            gone += await _count(session, delete(model).where(col(model.id).in_(over)))
    async with sessions() as session, session.begin():
        gone += await forget_ended(session, now)
    # Ids sort by time, and have an index that times do not have.
    end = _first_id(now - keep_events)
    async with sessions() as session, session.begin():
        await _forget_attempts(session, end, at_once)
    async with sessions() as session, session.begin():
        attempted = exists().where(col(WebhookAttempt.delivery_id) == col(WebhookDelivery.id))
        event_id = col(WebhookDelivery.event_id)
        await _forget_unused(session, WebhookDelivery, event_id, end, attempted, at_once)
    async with sessions() as session, session.begin():
        delivered = exists().where(col(WebhookDelivery.event_id) == col(Event.id))
        gone += await _forget_unused(session, Event, col(Event.id), end, delivered, at_once)
    return gone


async def _forget_attempts(session: AsyncSession, end: UUID, at_once: int) -> None:
    """Deletes attempts to deliver events before `end`, those of the oldest events first."""
    old = (
        select(col(WebhookAttempt.id))
        .join(WebhookDelivery, col(WebhookDelivery.id) == col(WebhookAttempt.delivery_id))
        .where(col(WebhookDelivery.event_id) < end)
        .order_by(col(WebhookDelivery.event_id))
        .limit(at_once)
    )
    await _count(session, delete(WebhookAttempt).where(col(WebhookAttempt.id).in_(old)))


async def _forget_unused(
    session: AsyncSession,
    model: type[WebhookDelivery] | type[Event],
    event_id: Mapped[UUID],
    end: UUID,
    used: Exists,
    at_once: int,
) -> int:
    """Deletes rows of events before `end`, the oldest first, that no other row refers to; says how many."""
    old = select(col(model.id)).where(event_id < end, ~used).order_by(event_id).limit(at_once)
    # Whoever refers to one of them at this moment is waited for, and the deletion sees what they have done.
    locked = select(col(model.id)).where(col(model.id).in_(old)).order_by(col(model.id)).with_for_update()
    ids = (await session.scalars(locked)).all()
    return await _count(session, delete(model).where(col(model.id).in_(ids), ~used))


def _first_id(at: datetime) -> UUID:
    """The least UUID version 7 of a millisecond."""
    return UUID(int=int(at.timestamp() * 1000) << 80)


async def _count(session: AsyncSession, deletion: Delete) -> int:
    connection = await session.connection()
    return (await connection.execute(deletion)).rowcount
