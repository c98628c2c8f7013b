"""What the end of an operation means for the resources that it held, in the transaction that ends it."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.database.base import utc_now
from deployerp.domain.events.log import Subject, write_events
from deployerp.domain.operations.holds import release_holds
from deployerp.domain.operations.lifecycles import DELETED, FAILED
from deployerp.domain.operations.messages import EndpointOrder, OperationEnd, OperationOrder
from deployerp.domain.operations.operation import Operation, OperationHold, OperationStep
from deployerp.domain.operations.stateful import STATEFUL, Stateful, action_of


async def settle(session: AsyncSession, operation: Operation, end: OperationEnd) -> list[EndpointOrder]:
    """Ends a locked operation, releases its holds and writes the events; returns the endpoints to wake."""
    operation.state, operation.finished_at = end.outcome, utc_now()
    operation.error_code, operation.error_message = end.code, await _in_full(session, end)
    included = await lock_included(session, end.order)
    holds = {hold.resource_id: hold for hold in await release_holds(session, operation)}
    table = STATEFUL[operation.resource_type]
    resource = await session.get_one(table, operation.resource_id)
    if resource.deleted_at is not None:
        # Its server was deleted under it: that event has been told, and nothing brings it back.
        return []
    facts: list[tuple[str, Subject]] = []
    for each in included:
        event = _settle_included(each, holds[each.id], end) if each.deleted_at is None else None
        if event is not None:
            facts.append((event, each))
    hold = holds.get(resource.id)
    facts.append((_settle_own(resource, hold.status_before if hold else FAILED, end), resource))
    # What the database sets, such as the time of the change, is told too.
    await session.flush()
    return await write_events(session, facts)


async def lock_included(session: AsyncSession, order: OperationOrder) -> Sequence[Stateful]:
    """The resources that an operation holds beside its own, locked."""
    includes = action_of(order.resource_type, order.action).includes
    if includes is None:
        return []
    table = STATEFUL[includes.resource_type]
    held = select(col(OperationHold.resource_id)).where(
        col(OperationHold.operation_id) == UUID(order.operation_id), col(OperationHold.mode) == "exclusive"
    )
    query = select(table).where(col(table.id).in_(held)).order_by(col(table.id)).with_for_update()
    return (await session.scalars(query)).all()


def _settle_own(resource: Stateful, status_before: str, end: OperationEnd) -> str:
    """Sets the state of the operation's own resource; returns the event that tells of it."""
    action = resource.lifecycle.actions[end.order.action]
    if end.outcome != "succeeded":
        left_failed = action.on_failure == "failed"
        resource.move(FAILED if left_failed else end.observed or status_before, end.message)
        if end.has_begun and end.observed is None:
            # Nobody could look at it.
            resource.health = "unknown"
        return resource.lifecycle.failure_event(action)
    resource.move(action.end)
    resource.health = "healthy" if action.end == "running" else "unknown"
    if action.time_column:
        setattr(resource, action.time_column, utc_now())
    if action.end == DELETED:
        resource.deleted_at = utc_now()
    return action.event


def _settle_included(resource: Stateful, hold: OperationHold, end: OperationEnd) -> str | None:
    """Sets the state of a resource that the operation on another held too; returns the event, if any."""
    action = action_of(end.order.resource_type, end.order.action)
    lifecycle, before = resource.lifecycle, hold.status_before
    stands_for = (
        lifecycle.actions[action.includes.action] if action.includes and action.includes.action else None
    )
    succeeded = end.outcome == "succeeded"
    if succeeded and stands_for and stands_for.end == DELETED:
        resource.move(DELETED, f"Deleted with its {end.order.resource_type}.")
        resource.deleted_at = utc_now()
        return stands_for.event
    if resource.status in lifecycle.transitional:
        # No observation has replaced the transitional status.
        resource.move(stands_for.end if stands_for and succeeded else before, resource.status_message)
    noticed = lifecycle.observed(before, resource.status)
    return noticed.event if noticed else None


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
