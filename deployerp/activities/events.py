"""Facts, written in the transaction of the change that they tell of."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.domain.errors import NotFound
from deployerp.domain.events import Event
from deployerp.domain.instances import Instance
from deployerp.domain.lifecycles import ResourceType
from deployerp.domain.organizations import Organization
from deployerp.domain.servers import Server
from deployerp.domain.webhook_deliveries import WebhookDelivery
from deployerp.domain.webhook_endpoints import WebhookEndpoint

# What an event tells of its resource, by its names in the API; secrets have no place here.
_TOLD: dict[ResourceType, Mapping[str, str]] = {
    "server": {"name": "name", "status": "status", "statusMessage": "status_message", "address": "address"},
    "instance": {
        "name": "name",
        "slug": "slug",
        "status": "status",
        "statusMessage": "status_message",
        "serverId": "server_id",
        "odooVersion": "odoo_version",
        "environmentType": "environment_type",
        "url": "url",
    },
}


async def write_event(
    session: AsyncSession, event_type: str, resource_type: ResourceType, resource: Server | Instance
) -> list[WebhookDelivery]:
    """Adds an event and the deliveries it calls for, in the caller's transaction."""
    event = Event(
        organization_id=resource.organization_id,
        sequence=await _next_sequence(session, resource.organization_id),
        type=event_type,
        resource_type=resource_type,
        resource_id=resource.id,
        data=_told_of(resource_type, resource),
    )
    session.add(event)
    await session.flush()
    deliveries = [
        WebhookDelivery(
            organization_id=event.organization_id,
            endpoint_id=endpoint.id,
            event_id=event.id,
            event_type=event_type,
        )
        for endpoint in await _endpoints(session, event.organization_id)
        if endpoint.wants(event_type)
    ]
    session.add_all(deliveries)
    return deliveries


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


async def _endpoints(session: AsyncSession, organization_id: UUID) -> list[WebhookEndpoint]:
    found = await session.scalars(
        select(WebhookEndpoint).where(
            col(WebhookEndpoint.organization_id) == organization_id,
            col(WebhookEndpoint.enabled),
            col(WebhookEndpoint.deleted_at).is_(None),
        )
    )
    return list(found)


def _told_of(resource_type: ResourceType, resource: Server | Instance) -> dict[str, Any]:
    told = {name: getattr(resource, attribute) for name, attribute in _TOLD[resource_type].items()}
    plain = {name: str(value) if isinstance(value, UUID) else value for name, value in told.items()}
    return {"id": str(resource.id)} | plain
