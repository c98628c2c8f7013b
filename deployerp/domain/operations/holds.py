"""Which resources an open operation keeps from others, and how.

An exclusive hold changes the resource, and excludes every other. A shared one reads it, and excludes
exclusive ones. Both are checked under the lock of the resource's row; requests lock their own resource
first, then those that it includes, then those that it reads.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.core.errors import OperationInProgress
from deployerp.domain.operations.lifecycles import DELETED, OPEN_OPERATION_STATES, Action
from deployerp.domain.operations.operation import Operation, OperationHold
from deployerp.domain.operations.stateful import STATEFUL, Stateful


def hold_of(operation: Operation, resource: Stateful, mode: str = "exclusive") -> OperationHold:
    return OperationHold(
        organization_id=resource.organization_id,
        operation_id=operation.id,
        resource_type=resource.resource_type,
        resource_id=resource.id,
        mode=mode,
        status_before=resource.status,
    )


async def release_holds(session: AsyncSession, operation: Operation) -> Sequence[OperationHold]:
    """Deletes all holds of an operation, and returns them."""
    query = select(OperationHold).where(col(OperationHold.operation_id) == operation.id)
    holds = (await session.scalars(query)).all()
    await session.execute(delete(OperationHold).where(col(OperationHold.operation_id) == operation.id))
    return holds


async def take_over(session: AsyncSession, parent: Operation, operation: Operation) -> None:
    """Gives the parent's hold on a resource to an operation that it orders. Raises `OperationInProgress`."""
    hold = await session.scalar(
        select(OperationHold).where(
            col(OperationHold.operation_id) == parent.id,
            col(OperationHold.resource_id) == operation.resource_id,
        )
    )
    if hold is None:
        raise OperationInProgress("The operation does not hold the resource any more.")
    hold.operation_id = operation.id


async def lock_holders(
    session: AsyncSession, exclusive: Sequence[UUID], shared: Sequence[UUID] = ()
) -> Sequence[Operation]:
    """The open operations that exclude such holds on these resources, locked, the latest first."""
    changed = (col(OperationHold.mode) == "exclusive") & col(OperationHold.resource_id).in_(shared)
    held = select(col(OperationHold.operation_id)).where(
        or_(col(OperationHold.resource_id).in_(exclusive), changed)
    )
    found = await session.scalars(
        select(Operation)
        .where(col(Operation.id).in_(held), col(Operation.state).in_(OPEN_OPERATION_STATES))
        .order_by(col(Operation.id).desc())
        .with_for_update()
    )
    return found.all()


async def lock_readers(session: AsyncSession, subjects: Sequence[UUID]) -> dict[UUID, Stateful]:
    """The resources, by id, of the operations that only read the subjects, which are locked.

    They are locked before their operations, as workers do: the other order would make deadlocks.
    """
    held = select(col(OperationHold.operation_id)).where(col(OperationHold.resource_id).in_(subjects))
    changing = held.where(col(OperationHold.mode) == "exclusive")
    query = (
        select(col(Operation.resource_type), col(Operation.resource_id))
        .where(col(Operation.id).in_(held), col(Operation.id).not_in(changing))
        .order_by(col(Operation.resource_type), col(Operation.resource_id))
    )
    readers = (await session.execute(query)).all()
    return {
        resource_id: await session.get_one(STATEFUL[resource_type], resource_id, with_for_update=True)
        for resource_type, resource_id in readers
    }


async def check_holds(
    session: AsyncSession,
    resource: Stateful,
    exclusive: Sequence[Stateful],
    shared: Sequence[Stateful],
    parent: Operation | None = None,
) -> None:
    """Raises `OperationInProgress` when an operation other than the parent stands in the way."""
    if not exclusive and not shared:
        return
    holders = await lock_holders(session, [each.id for each in exclusive], [each.id for each in shared])
    for operation in holders:
        if parent is not None and operation.id == parent.id:
            continue
        other = f"{operation.resource_type} {operation.resource_name}"
        subject = f"this {resource.resource_type}" if operation.resource_id == resource.id else other
        raise OperationInProgress(
            f"Operation `{operation.action}` runs on {subject}: wait for it or cancel it.",
            details={"operation_id": str(operation.id)},
        )


async def lock_included(session: AsyncSession, resource: Stateful, action: Action) -> list[Stateful]:
    """The resources that the action holds beside its own, locked."""
    if action.includes is None:
        return []
    table = STATEFUL[action.includes.resource_type]
    query = (
        select(table)
        .where(getattr(table, action.includes.column) == resource.id, col(table.status) != DELETED)
        .order_by(col(table.id))
        .with_for_update()
    )
    return list((await session.scalars(query)).all())


async def lock_required(session: AsyncSession, resource: Stateful, action: Action) -> Stateful | None:
    """The resource that the action requires; locked against changes when the action reads it."""
    if action.requires is None:
        return None
    table = STATEFUL[action.requires.resource_type]
    query = select(table).where(col(table.id) == getattr(resource, action.requires.column))
    if action.requires.reads:
        # Several may read it at once.
        query = query.with_for_update(read=True)
    # As it is now, whatever the session has read of it before.
    return (await session.scalars(query.execution_options(populate_existing=True))).one()
