"""Writing what was seen of resources between operations, where nothing newer is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.domain.events.log import Subject, write_events
from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.operations.operation import OperationHold
from deployerp.domain.operations.stateful import STATEFUL, Stateful


@dataclass(frozen=True)
class Sighting:
    """What was seen of a resource. `begun_at` is when the look began; None leaves a value as it is."""

    resource_type: str
    resource_id: UUID
    begun_at: datetime
    status: str | None = None
    status_message: str | None = None
    health: str | None = None


async def observe(
    session: AsyncSession, sightings: Sequence[Sighting]
) -> tuple[list[Stateful], list[EndpointOrder]]:
    """Writes a batch of sightings; returns the resources that changed, and the endpoints to wake.

    Skipped are resources that are deleted, that an operation holds exclusively, or whose status changed after
    the look began. A status is written only where the lifecycle has a row for the change.
    """
    by_type: dict[str, dict[UUID, Sighting]] = {}
    for sighting in sightings:
        by_type.setdefault(sighting.resource_type, {})[sighting.resource_id] = sighting
    changed: list[Stateful] = []
    facts: list[tuple[str, Subject]] = []
    for resource_type, seen in sorted(by_type.items()):
        for resource in await _lock_free(session, STATEFUL[resource_type], seen):
            sighting, before = seen[resource.id], resource.status
            noticed = resource.lifecycle.observed(before, sighting.status) if sighting.status else None
            if noticed is not None:
                resource.move(noticed.state, sighting.status_message)
                facts.append((noticed.event, resource))
            if sighting.health is not None:
                resource.health = sighting.health
            if session.is_modified(resource):
                changed.append(resource)
    await session.flush()
    return changed, await write_events(session, facts)


async def _lock_free(
    session: AsyncSession, table: type[Stateful], seen: dict[UUID, Sighting]
) -> list[Stateful]:
    """The resources that the sightings change and nothing newer is known of, locked.

    Most sightings change nothing: those are found without a lock.
    """
    columns = (col(table.id), col(table.status), col(table.health), col(table.state_changed_at))
    known = await session.execute(select(*columns).where(col(table.id).in_(seen)))
    differing = [
        resource_id
        for resource_id, status, health, state_changed_at in known
        if state_changed_at < (sighting := seen[resource_id]).begun_at
        and (sighting.status not in (None, status) or sighting.health not in (None, health))
    ]
    if not differing:
        return []
    query = (
        select(table)
        .where(col(table.id).in_(differing), col(table.deleted_at).is_(None))
        .order_by(col(table.id))
        .with_for_update()
    )
    locked = (await session.scalars(query)).all()
    # Under the lock: an order takes the resource before it writes its hold.
    holds = select(col(OperationHold.resource_id)).where(
        col(OperationHold.resource_id).in_(differing), col(OperationHold.mode) == "exclusive"
    )
    held = set((await session.scalars(holds)).all())
    return [each for each in locked if each.id not in held and each.state_changed_at < seen[each.id].begun_at]
