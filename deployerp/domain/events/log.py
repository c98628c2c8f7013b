"""Facts, written in the transaction of the change that they tell of."""

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


async def write_event(
    session: AsyncSession, event_type: str, resource: Stateful | Operation | WebhookEndpoint
) -> list[EndpointOrder]:
    """Adds an event and the deliveries it calls for, in the caller's transaction.

    Returns the endpoints that are to be woken once it is committed.
    """
    event = await _write(session, event_type, resource)
    listening = await _listening(session, event)
    if not listening:
        return []
    session.add_all(_delivery(event, endpoint) for endpoint in listening)
    await session.flush()
    return await wake(session, [endpoint.id for endpoint in listening])


async def write_ping(
    session: AsyncSession, endpoint: WebhookEndpoint
) -> tuple[WebhookDelivery, list[EndpointOrder]]:
    """A test of an endpoint, which nobody else gets, whatever they ask for, and whatever it asks for itself.

    Returns its delivery, and the endpoint where it is to be woken once it is committed.
    """
    delivery = _delivery(await _write(session, PINGED, endpoint), endpoint)
    session.add(delivery)
    await session.flush()
    return delivery, await wake(session, [endpoint.id])


async def _write(
    session: AsyncSession, event_type: str, resource: Stateful | Operation | WebhookEndpoint
) -> Event:
    event = Event(
        organization_id=resource.organization_id,
        sequence=await _next_sequence(session, resource.organization_id),
        type=event_type,
        resource_type=event_type.partition(".")[0],
        resource_id=resource.id,
        data=EVENT_TYPES[event_type].told_of(resource),
    )
    session.add(event)
    await session.flush()
    return event


def _delivery(event: Event, endpoint: WebhookEndpoint) -> WebhookDelivery:
    return WebhookDelivery(
        organization_id=event.organization_id,
        endpoint_id=endpoint.id,
        event_id=event.id,
        event_type=event.type,
    )


async def _next_sequence(session: AsyncSession, organization_id: UUID) -> int:
    # The row lock of this update queues concurrent writers: no gap, no repeat.
    sequence: int | None = await session.scalar(
        update(Organization)
        .where(col(Organization.id) == organization_id)
        .values(event_sequence=col(Organization.event_sequence) + 1)
        .returning(col(Organization.event_sequence))
    )
    if sequence is None:
        raise NotFound(f"Organization {organization_id} does not exist.")
    return sequence


async def _listening(session: AsyncSession, event: Event) -> list[WebhookEndpoint]:
    found = await session.scalars(
        select(WebhookEndpoint).where(
            col(WebhookEndpoint.organization_id) == event.organization_id,
            col(WebhookEndpoint.enabled),
            col(WebhookEndpoint.deleted_at).is_(None),
        )
    )
    return [endpoint for endpoint in found if endpoint.wants(event.type)]
