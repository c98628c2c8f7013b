"""Facts, written in the transaction of the change that they tell of."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.core.errors import NotFound
from deployerp.domain.events.event import Event
from deployerp.domain.events.types import EVENT_TYPES, PINGED
from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.operations.operation import Operation
from deployerp.domain.operations.stateful import Stateful
from deployerp.domain.organizations import Organization
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint
from deployerp.domain.webhooks.queue import wake

Subject = Stateful | Operation | WebhookEndpoint
"""What an event can tell of."""


async def write_event(session: AsyncSession, event_type: str, subject: Subject) -> list[EndpointOrder]:
    """Adds an event and the deliveries it calls for, in the caller's transaction.

    Returns the endpoints that are to be woken once it is committed.
    """
    return await write_events(session, [(event_type, subject)])


async def write_events(session: AsyncSession, facts: Sequence[tuple[str, Subject]]) -> list[EndpointOrder]:
    """Adds many events, in this order, with one range of sequence numbers for each organization.

    Returns the endpoints that are to be woken once it is committed.
    """
    by_organization: dict[UUID, list[tuple[str, Subject]]] = {}
    for fact in facts:
        by_organization.setdefault(fact[1].organization_id, []).append(fact)
    wanting: set[UUID] = set()
    # Always in the same order: each organization's row is locked until the end of the transaction.
    for organization_id in sorted(by_organization):
        events = await _write(session, organization_id, by_organization[organization_id])
        endpoints = await _find_endpoints(session, organization_id)
        wanted = [
            (event, endpoint) for event in events for endpoint in endpoints if endpoint.wants(event.type)
        ]
        session.add_all(_delivery(event, endpoint) for event, endpoint in wanted)
        wanting |= {endpoint.id for _, endpoint in wanted}
    if not wanting:
        return []
    await session.flush()
    return await wake(session, sorted(wanting))


async def write_ping(
    session: AsyncSession, endpoint: WebhookEndpoint
) -> tuple[WebhookDelivery, list[EndpointOrder]]:
    """A test of an endpoint, which nobody else gets, whatever they ask for, and whatever it asks for itself.

    Returns its delivery, and the endpoint where it is to be woken once it is committed.
    """
    (event,) = await _write(session, endpoint.organization_id, [(PINGED, endpoint)])
    delivery = _delivery(event, endpoint)
    session.add(delivery)
    await session.flush()
    return delivery, await wake(session, [endpoint.id])


async def _write(
    session: AsyncSession, organization_id: UUID, facts: Sequence[tuple[str, Subject]]
) -> list[Event]:
    first = await _take_sequences(session, organization_id, len(facts))
    events = [
        Event(
            organization_id=organization_id,
            sequence=sequence,
            type=event_type,
            resource_type=event_type.partition(".")[0],
            resource_id=subject.id,
            data=EVENT_TYPES[event_type].describe(subject),
        )
        for sequence, (event_type, subject) in enumerate(facts, first)
    ]
    session.add_all(events)
    await session.flush()
    return events


def _delivery(event: Event, endpoint: WebhookEndpoint) -> WebhookDelivery:
    return WebhookDelivery(
        organization_id=event.organization_id,
        endpoint_id=endpoint.id,
        event_id=event.id,
        event_type=event.type,
    )


async def _take_sequences(session: AsyncSession, organization_id: UUID, count: int) -> int:
    """Takes so many sequence numbers; returns the first."""
    # The row lock of this update queues concurrent writers: no gap, no repeat.
    last: int | None = await session.scalar(
        update(Organization)
        .where(col(Organization.id) == organization_id)
        .values(event_sequence=col(Organization.event_sequence) + count)
        .returning(col(Organization.event_sequence))
    )
    if last is None:
        raise NotFound(f"Organization {organization_id} does not exist.")
    return last - count + 1


async def _find_endpoints(session: AsyncSession, organization_id: UUID) -> Sequence[WebhookEndpoint]:
    found = await session.scalars(
        select(WebhookEndpoint).where(
            col(WebhookEndpoint.organization_id) == organization_id,
            col(WebhookEndpoint.enabled),
            col(WebhookEndpoint.deleted_at).is_(None),
        )
    )
    return found.all()
