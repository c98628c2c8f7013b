"""Ordering operations: what one needs, which resources it holds, and where it moves them.

Requests order operations, and so do workflows and schedules: nothing here knows of requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, cast
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.core.errors import InvalidState, OperationInProgress
from deployerp.database.base import new_id, utc_now
from deployerp.database.statements import put
from deployerp.domain import tables  # noqa: F401  (registers every resource)
from deployerp.domain.operations.lifecycles import DELETED, FAILED, OPEN_OPERATION_STATES, Action
from deployerp.domain.operations.messages import workflow_id
from deployerp.domain.operations.operation import Operation, OperationHold
from deployerp.domain.operations.stateful import STATEFUL, Stateful


@dataclass(frozen=True)
class Actor:
    """Who orders an operation: a user, an API key, or the control plane itself, which has no id."""

    id: UUID | None = None


SYSTEM = Actor()


async def order(
    session: AsyncSession,
    actor: Actor,
    resource: Stateful,
    name: str,
    parameters: object = None,
    *,
    force: bool = False,
    retry_of: Operation | None = None,
    parent: Operation | None = None,
) -> Operation:
    """Writes an operation on a resource, and moves what it holds to the transitional states.

    The resource is new or locked. `parameters` is the dataclass that the action declares; a retry has those
    of the operation that it repeats. An operation ordered by another, its `parent`, takes over the parent's
    hold, and its status is not checked: the parent decides where the resource goes. The caller starts the
    workflow after the commit. Raises `OperationInProgress` and `InvalidState`.
    """
    action = resource.lifecycle.actions[name]
    operation = Operation(
        id=(operation_id := new_id()),
        organization_id=resource.organization_id,
        resource_type=resource.resource_type,
        resource_id=resource.id,
        action=name,
        parameters=retry_of.parameters if retry_of else _as_json(action, parameters),
        workflow_id=workflow_id(resource.resource_type, name, resource.workflow_slug, str(operation_id)),
        resource_name=resource.name,
        resource_slug=resource.workflow_slug,
        force=force,
        requested_by=actor.id,
        retry_of=retry_of.id if retry_of else None,
        parent_id=parent.id if parent else None,
    )
    if parent is not None:
        await _take_over(session, parent, operation)
        resource.move(action.transitional)
        return operation
    is_new = action is resource.lifecycle.first and retry_of is None
    included = [] if is_new else await lock_included(session, resource, action)
    if not is_new:
        await _check_holds(session, resource, included)
    if not force:
        await _check_requirement(session, resource, action)
    if not is_new:
        _check_status(resource, action, is_retry=retry_of is not None)
    await _write(session, operation, [_hold(operation, each) for each in (resource, *included)])
    if not is_new:
        # A new resource is pending until its workflow claims the operation.
        _move(resource, action, included)
    return operation


def parameters_of(order: Any, kind: type[Any]) -> Any:
    """The parameters of an operation or its order, as the dataclass that its action declares."""
    return TypeAdapter(kind).validate_python(dict(order.parameters))


async def supersede(session: AsyncSession, resource: Stateful) -> list[Operation]:
    """Closes the operations that a deletion by force replaces, and returns them.

    These are the open operations on the locked resource and on what its deletion includes. A deletion by
    force of the resource itself stays open: a second request for it must not start it again.
    """
    included = await lock_included(session, resource, resource.lifecycle.actions["delete"])
    subjects = {each.id: each for each in (resource, *included)}
    closed = []
    for operation in await lock_holders(session, list(subjects)):
        subject = subjects.get(operation.resource_id)
        if subject is None or (operation.force and subject is resource):
            continue
        for hold in await release_holds(session, operation):
            held = subjects.get(hold.resource_id)
            if held is not None and held.status in held.lifecycle.transitional:
                held.move(hold.status_before, held.status_message)
        operation.state, operation.finished_at = "cancelled", utc_now()
        operation.error_code = "superseded"
        operation.error_message = f"The {resource.resource_type} was deleted by force."
        subject.move(FAILED, subject.status_message)
        closed.append(operation)
    await session.flush()
    return closed


async def release_holds(session: AsyncSession, operation: Operation) -> Sequence[OperationHold]:
    """Lets go everything that an operation holds; returns what it held."""
    query = select(OperationHold).where(col(OperationHold.operation_id) == operation.id)
    holds = (await session.scalars(query)).all()
    await session.execute(delete(OperationHold).where(col(OperationHold.operation_id) == operation.id))
    return holds


async def lock_holders(session: AsyncSession, resource_ids: Sequence[UUID]) -> Sequence[Operation]:
    """The open operations that hold any of these resources, locked, the latest first."""
    held = select(col(OperationHold.operation_id)).where(col(OperationHold.resource_id).in_(resource_ids))
    found = await session.scalars(
        select(Operation)
        .where(col(Operation.id).in_(held), col(Operation.state).in_(OPEN_OPERATION_STATES))
        .order_by(col(Operation.id).desc())
        .with_for_update()
    )
    return found.all()


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


def _as_json(action: Action, parameters: object) -> dict[str, Any]:
    if action.parameters is None:
        return {}
    if not is_dataclass(parameters) or not isinstance(parameters, action.parameters):
        raise TypeError(f"{action.name} takes {action.parameters.__name__}")
    return cast("dict[str, Any]", TypeAdapter(action.parameters).dump_python(parameters, mode="json"))


async def _take_over(session: AsyncSession, parent: Operation, operation: Operation) -> None:
    hold = await session.scalar(
        select(OperationHold).where(
            col(OperationHold.operation_id) == parent.id,
            col(OperationHold.resource_id) == operation.resource_id,
        )
    )
    if hold is None:
        raise OperationInProgress("The operation does not hold the resource any more.")
    await put(session, operation)
    hold.operation_id = operation.id


async def _check_holds(session: AsyncSession, resource: Stateful, included: Sequence[Stateful]) -> None:
    for operation in await lock_holders(session, [resource.id, *(each.id for each in included)]):
        other = f"{operation.resource_type} {operation.resource_name}"
        subject = f"this {resource.resource_type}" if operation.resource_id == resource.id else other
        raise OperationInProgress(
            f"Operation `{operation.action}` runs on {subject}: wait for it or cancel it.",
            details={"operation_id": str(operation.id)},
        )


async def _check_requirement(session: AsyncSession, resource: Stateful, action: Action) -> None:
    if action.requires is None:
        return
    table = STATEFUL[action.requires.resource_type]
    query = select(col(table.name), col(table.status)).where(
        col(table.id) == getattr(resource, action.requires.column)
    )
    name, status = (await session.execute(query)).one()
    if status not in action.requires.states:
        way_out = ", or add force=true" if action.end == DELETED else ""
        raise InvalidState(
            f"The {action.requires.resource_type} {name} is {status}, and `{action.name}` needs it to be"
            f" {' or '.join(action.requires.states)}: start it first{way_out}.",
            details={"status": status},
        )


def _check_status(resource: Stateful, action: Action, *, is_retry: bool) -> None:
    if resource.status == FAILED and action.end != DELETED and not is_retry and not resource.has_run:
        raise InvalidState(
            f"The {resource.resource_type} has never run: retry its last operation, or delete it.",
            details={"status": resource.status},
        )
    allowed = action.from_states
    if is_retry:
        # What a failure leaves is not always `failed`: what is seen afterwards may be what was before.
        allowed = (FAILED,) if action.on_failure == "failed" else (FAILED, *allowed)
    if resource.status not in allowed:
        name = "retry" if is_retry else action.name
        raise InvalidState(
            f"Cannot {name}: the {resource.resource_type} is {resource.status}, not {' or '.join(allowed)}.",
            details={"status": resource.status, "allowed": list(allowed)},
        )


def _hold(operation: Operation, resource: Stateful) -> OperationHold:
    return OperationHold(
        organization_id=resource.organization_id,
        operation_id=operation.id,
        resource_type=resource.resource_type,
        resource_id=resource.id,
        status_before=resource.status,
    )


async def _write(session: AsyncSession, operation: Operation, holds: Sequence[OperationHold]) -> None:
    try:
        for record in (operation, *holds):
            await put(session, record)
    except IntegrityError:
        # The index is the last word on one operation at a time.
        raise OperationInProgress("Another operation has just begun: wait for it or cancel it.") from None


def _move(resource: Stateful, action: Action, included: Sequence[Stateful]) -> None:
    resource.move(action.transitional)
    if action.desired_state:
        resource.desired_state = action.desired_state
    if action.includes is None or action.includes.action is None:
        return
    for each in included:
        theirs = each.lifecycle.actions[action.includes.action]
        if each.status in theirs.from_states:
            each.move(theirs.transitional, each.status_message)
