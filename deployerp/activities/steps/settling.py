"""What the end of an operation means for the resources that it held, in the transaction that ends it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.database.base import utc_now
from deployerp.domain.events.log import write_event
from deployerp.domain.instances import Instance
from deployerp.domain.operations.lifecycles import DELETED, FAILED, INSTANCE, action_of, failure_event
from deployerp.domain.operations.messages import EndpointOrder, OperationEnd, OperationOrder
from deployerp.domain.operations.operation import Operation, OperationHold, OperationStep
from deployerp.domain.operations.ordering import MODELS, Resource, release_holds

# The action whose event tells of an instance that is observed in this status, and was in another before.
_ACTION_TO = {"stopped": INSTANCE.actions["stop"], "running": INSTANCE.actions["start"]}


async def settle(session: AsyncSession, operation: Operation, end: OperationEnd) -> list[EndpointOrder]:
    """Ends a locked operation, releases its holds and writes the events; returns the endpoints to wake."""
    operation.state, operation.finished_at = end.outcome, utc_now()
    operation.error_code, operation.error_message = end.code, await _in_full(session, end)
    holds = {hold.resource_id: hold for hold in await release_holds(session, operation)}
    model: Any = MODELS[operation.typed_resource]
    resource: Resource = await session.get_one(model, operation.resource_id)
    if resource.deleted_at is not None:
        # Its server was deleted under it: that event has been told, and nothing brings it back.
        return []
    included = await session.scalars(
        select(Instance)
        .where(col(Instance.id).in_(holds.keys() - {resource.id}), col(Instance.deleted_at).is_(None))
        .order_by(col(Instance.id))
    )
    asleep = []
    for instance in included:
        asleep += await _settle_included(session, instance, holds[instance.id], end)
    hold = holds.get(resource.id)
    return asleep + await _settle_own(session, resource, hold.status_before if hold else FAILED, end)


async def lock_held_instances(session: AsyncSession, order: OperationOrder) -> Sequence[Instance]:
    """The instances that an operation on their server holds, locked."""
    held = select(col(OperationHold.resource_id)).where(
        col(OperationHold.operation_id) == UUID(order.operation_id)
    )
    found = await session.scalars(
        select(Instance)
        .where(col(Instance.id).in_(held), col(Instance.id) != UUID(order.resource_id))
        .order_by(col(Instance.id))
        .with_for_update()
    )
    return found.all()


async def _settle_own(
    session: AsyncSession, resource: Resource, status_before: str, end: OperationEnd
) -> list[EndpointOrder]:
    action = action_of(end.order.resource_type, end.order.action)
    if end.outcome != "succeeded":
        left_failed = action.on_failure == "failed"
        resource.status = FAILED if left_failed else end.observed or status_before
        resource.status_message = end.message
        return await write_event(session, failure_event(end.order.resource_type, action.name), resource)
    resource.status, resource.status_message = action.end, None
    if isinstance(resource, Instance) and action.name == "deploy":
        resource.deployed_at = utc_now()
    if action.end == DELETED:
        resource.deleted_at = utc_now()
    return await write_event(session, action.event, resource)


async def _settle_included(
    session: AsyncSession, instance: Instance, hold: OperationHold, end: OperationEnd
) -> list[EndpointOrder]:
    """Sets the status of an instance that the operation on its server held, and writes the event."""
    action = action_of(end.order.resource_type, end.order.action)
    if end.outcome == "succeeded" and action.end == DELETED:
        instance.status, instance.deleted_at = DELETED, utc_now()
        instance.status_message = "Deleted with its server."
        return await write_event(session, INSTANCE.actions["delete"].event, instance)
    if instance.status in INSTANCE.transitional:
        reached = action.instances_action if end.outcome == "succeeded" else None
        # No observation has replaced the transitional status.
        instance.status = INSTANCE.actions[reached].end if reached else hold.status_before
    done = _ACTION_TO.get(instance.status) if instance.status != hold.status_before else None
    return await write_event(session, done.event, instance) if done else []


async def _in_full(session: AsyncSession, end: OperationEnd) -> str | None:
    """The message with the log that the failed step keeps below it, which did not pass through Temporal."""
    if end.message is None:
        return None
    details = select(col(OperationStep.detail)).where(
        col(OperationStep.operation_id) == UUID(end.order.operation_id),
        col(OperationStep.state) == "failed",
        col(OperationStep.detail).contains("\n"),
    )
    for detail in await session.scalars(details):
        message, _, log = str(detail).partition("\n")
        if end.message.startswith(message):
            return f"{end.message}\n{log}"
    return end.message
