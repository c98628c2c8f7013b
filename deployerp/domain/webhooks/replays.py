"""Sending again: deliveries that have come to their end, and events that an endpoint has missed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.database.base import new_id
from deployerp.domain.events.event import Event
from deployerp.domain.events.types import EVENT_TYPES, PINGED
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint

Each = TypeVar("Each")

# Whoever asks for the same at the same time may have looked at the clock a little earlier.
_MOMENT = timedelta(seconds=1)
# Rows of one statement.
_AT_ONCE = 1000
# Whoever replays at the same time may have made the same deliveries.
_INSERTS: dict[str, Any] = {
    name: dialect.insert(WebhookDelivery.__table__)  # type: ignore[attr-defined]
    .on_conflict_do_nothing()
    .returning(col(WebhookDelivery.id))
    for name, dialect in {"postgresql": postgresql, "sqlite": sqlite}.items()
}


@dataclass(frozen=True)
class Missed:
    """An event that is to be sent, and its delivery if there is one."""

    event_id: UUID
    event_type: str
    delivery_id: UUID | None


async def find_missed(
    session: AsyncSession,
    endpoint: WebhookEndpoint,
    since: datetime,
    until: datetime,
    *,
    undelivered: bool,
    limit: int,
) -> list[Missed]:
    """The events of that time that the endpoint wants, in their order; pings are not for a second time.

    With `undelivered` only those that it has not accepted.
    """
    own = and_(
        col(WebhookDelivery.event_id) == col(Event.id), col(WebhookDelivery.endpoint_id) == endpoint.id
    )
    found = await session.execute(
        select(col(Event.id), col(Event.type), col(WebhookDelivery.id))
        .outerjoin(WebhookDelivery, own)
        .where(
            col(Event.organization_id) == endpoint.organization_id,
            col(Event.created_at).between(since, until),
            col(Event.type).in_([name for name in EVENT_TYPES if name != PINGED and endpoint.wants(name)]),
            *([_unaccepted()] if undelivered else []),
        )
        .order_by(col(Event.sequence))
        .limit(limit)
    )
    return [Missed(*row) for row in found]


async def replay(
    session: AsyncSession, endpoint: WebhookEndpoint, missed: Sequence[Missed], now: datetime
) -> int:
    """Sends events, those that were sent before once again; says how many. The endpoint is to be woken."""
    again = [each.delivery_id for each in missed if each.delivery_id is not None]
    new = [each for each in missed if each.delivery_id is None]
    return await send_again(session, again, now) + await _send_new(session, endpoint, new, now)


async def send_again(session: AsyncSession, delivery_ids: Sequence[UUID], now: datetime) -> int:
    """Has deliveries tried now, with their schedule begun anew; says how many. The endpoint is to be woken.

    What is due now or in a moment is left alone: it is under way.
    """
    sent = 0
    for ids in _in_chunks(delivery_ids):
        statement = (
            update(WebhookDelivery)
            .where(col(WebhookDelivery.id).in_(ids), _idle(now))
            .values(
                state="pending",
                next_attempt_at=now,
                attempts_before=col(WebhookDelivery.attempts),
                error=None,
                finished_at=None,
            )
        )
        sent += (await session.execute(statement)).rowcount  # type: ignore[attr-defined]
    return sent


async def _send_new(
    session: AsyncSession, endpoint: WebhookEndpoint, missed: Sequence[Missed], now: datetime
) -> int:
    statement = _INSERTS[session.get_bind().dialect.name]
    sent = 0
    for chunk in _in_chunks(missed):
        rows = _new_rows(endpoint, chunk, now)
        sent += len((await session.execute(statement, rows)).all())
    return sent


def _new_rows(endpoint: WebhookEndpoint, missed: Sequence[Missed], now: datetime) -> list[dict[str, Any]]:
    """Their ids are in the order of the events, in which they are then sent."""
    # An object for each would cost more than everything else.
    first = WebhookDelivery(
        organization_id=endpoint.organization_id,
        endpoint_id=endpoint.id,
        event_id=missed[0].event_id,
        event_type=missed[0].event_type,
        next_attempt_at=now,
    ).model_dump()
    return [
        first | {"id": new_id(), "event_id": each.event_id, "event_type": each.event_type} for each in missed
    ]


def _unaccepted() -> ColumnElement[bool]:
    return or_(col(WebhookDelivery.id).is_(None), col(WebhookDelivery.state) != "succeeded")


def _idle(now: datetime) -> ColumnElement[bool]:
    soon = now + _MOMENT
    return or_(col(WebhookDelivery.state) != "pending", col(WebhookDelivery.next_attempt_at) > soon)


def _in_chunks(every: Sequence[Each]) -> Iterator[Sequence[Each]]:
    return (every[first : first + _AT_ONCE] for first in range(0, len(every), _AT_ONCE))
