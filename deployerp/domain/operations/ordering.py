"""Ordering operations: what one needs, which resources it holds, and where it moves them.

Requests order operations, and so do workflows: nothing here knows of requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.core.errors import InvalidState, OperationInProgress
from deployerp.database.base import new_id, utc_now
from deployerp.database.statements import put
from deployerp.domain.instances import Instance
from deployerp.domain.operations.lifecycles import (
    DELETED,
    FAILED,
    INSTANCE,
    LIFECYCLES,
    OPEN_OPERATION_STATES,
    Action,
    ResourceType,
)
from deployerp.domain.operations.messages import workflow_id
from deployerp.domain.operations.operation import Operation, OperationHold
from deployerp.domain.servers import Server

Resource = Server | Instance
MODELS: dict[ResourceType, type[Resource]] = {"server": Server, "instance": Instance}
RESOURCE_TYPES: dict[type[Resource], ResourceType] = {model: name for name, model in MODELS.items()}


@dataclass(frozen=True)
class ActionRequest:
    """What is asked for: an action on a resource, by whom, and how."""

    action: str
    requested_by: UUID | None = None
    force: bool = False
    retry_of: UUID | None = None


async def order(session: AsyncSession, resource: Resource, request: ActionRequest) -> Operation:
    """Writes an operation on a locked resource, and moves what it holds to the transitional states.

    The caller starts its workflow after the commit. Raises `OperationInProgress` and `InvalidState`.
    """
    action = _action(resource, request.action)
    included = await _included(session, resource, action)
    await _refuse_held(session, resource, included)
    await _need_server(session, resource, action, request)
    _need_status(resource, action, is_retry=request.retry_of is not None)
    operation = _operation(resource, request)
    holds = [_hold(operation, each) for each in (resource, *included)]
    await _write(session, operation, holds)
    _move(resource, action)
    for instance in included:
        if action.instances_action and instance.status == "running":
            instance.status = INSTANCE.actions[action.instances_action].transitional
    return operation


async def order_first(session: AsyncSession, resource: Resource, request: ActionRequest) -> Operation:
    """Writes the operation that brings a new resource into being, which it moves when it is claimed.

    Raises `InvalidState`.
    """
    await _need_server(session, resource, _action(resource, request.action), request)
    operation = _operation(resource, request)
    await _write(session, operation, [_hold(operation, resource)])
    return operation


async def order_within(session: AsyncSession, parent: Operation, resource: Resource, name: str) -> Operation:
    """Writes an operation that `parent` orders, and moves the parent's hold of the locked resource to it.

    The status is not checked: the parent holds the resource and decides where it goes.
    Raises `OperationInProgress`.
    """
    hold = await session.scalar(
        select(OperationHold).where(
            col(OperationHold.operation_id) == parent.id, col(OperationHold.resource_id) == resource.id
        )
    )
    if hold is None:
        raise OperationInProgress("The operation does not hold the resource any more.")
    operation = _operation(resource, ActionRequest(name, requested_by=parent.requested_by))
    operation.parent_id = parent.id
    await put(session, operation)
    hold.operation_id = operation.id
    resource.status, resource.status_message = _action(resource, name).transitional, None
    return operation


async def supersede(session: AsyncSession, resource: Resource) -> list[Operation]:
    """Closes the operations that a deletion by force replaces, and returns them.

    These are the open operations on the locked resource and on what its deletion includes. A deletion by
    force of the resource itself stays open: a second request for it must not start it again.
    """
    included = await _included(session, resource, _action(resource, "delete"))
    subjects = {each.id: each for each in (resource, *included)}
    closed = []
    for operation in await lock_holders(session, list(subjects)):
        subject = subjects.get(operation.resource_id)
        if subject is None or (operation.force and subject is resource):
            continue
        for hold in await release_holds(session, operation):
            held = subjects.get(hold.resource_id)
            if held is not None and held.status in LIFECYCLES[RESOURCE_TYPES[type(held)]].transitional:
                held.status = hold.status_before
        operation.state, operation.finished_at = "cancelled", utc_now()
        operation.error_code = "superseded"
        operation.error_message = f"The {RESOURCE_TYPES[type(resource)]} was deleted by force."
        subject.status = FAILED
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


def _action(resource: Resource, name: str) -> Action:
    return LIFECYCLES[RESOURCE_TYPES[type(resource)]].actions[name]


async def _included(session: AsyncSession, resource: Resource, action: Action) -> Sequence[Instance]:
    """The instances that the action on their server holds too, locked."""
    if not action.includes_instances:
        return []
    found = await session.scalars(
        select(Instance)
        .where(col(Instance.server_id) == resource.id, col(Instance.status) != DELETED)
        .order_by(col(Instance.id))
        .with_for_update()
    )
    return found.all()


async def _refuse_held(session: AsyncSession, resource: Resource, included: Sequence[Instance]) -> None:
    for operation in await lock_holders(session, [resource.id, *(each.id for each in included)]):
        kind = RESOURCE_TYPES[type(resource)]
        other = f"{operation.resource_type} {operation.resource_name or operation.resource_id}"
        subject = f"this {kind}" if operation.resource_id == resource.id else other
        raise OperationInProgress(
            f"Operation `{operation.action}` runs on {subject}: wait for it or cancel it.",
            details={"operation_id": str(operation.id)},
        )


async def _need_server(
    session: AsyncSession, resource: Resource, action: Action, request: ActionRequest
) -> None:
    if not isinstance(resource, Server) and action.server_states and not request.force:
        query = select(col(Server.name), col(Server.status)).where(col(Server.id) == resource.server_id)
        name, status = (await session.execute(query)).one()
        if status not in action.server_states:
            way_out = ", or add force=true" if action.end == DELETED else ""
            raise InvalidState(
                f"The server {name} is {status}, and `{action.name}` needs it to be"
                f" {' or '.join(action.server_states)}: start it first{way_out}.",
                details={"status": status},
            )


def _need_status(resource: Resource, action: Action, *, is_retry: bool) -> None:
    if resource.status == FAILED and action.end != DELETED and not is_retry and not resource.has_run:
        raise InvalidState(
            f"The {RESOURCE_TYPES[type(resource)]} has never run: retry its last operation, or delete it.",
            details={"status": resource.status},
        )
    allowed = action.from_states
    if is_retry:
        # What a failure leaves is not always `failed`: what is seen afterwards may be what was before.
        allowed = (FAILED,) if action.on_failure == "failed" else (FAILED, *allowed)
    if resource.status not in allowed:
        name = "retry" if is_retry else action.name
        raise InvalidState(
            f"`{name}` needs the status {' or '.join(allowed)}, and it is {resource.status}.",
            details={"status": resource.status, "allowed": list(allowed)},
        )


def _operation(resource: Resource, request: ActionRequest) -> Operation:
    operation_id, resource_type = new_id(), RESOURCE_TYPES[type(resource)]
    return Operation(
        id=operation_id,
        organization_id=resource.organization_id,
        resource_type=resource_type,
        resource_id=resource.id,
        action=request.action,
        workflow_id=workflow_id(resource_type, request.action, resource.slug, str(operation_id)),
        resource_name=resource.name,
        resource_slug=resource.slug,
        force=request.force,
        requested_by=request.requested_by,
        retry_of=request.retry_of,
    )


def _hold(operation: Operation, resource: Resource) -> OperationHold:
    return OperationHold(
        organization_id=resource.organization_id,
        operation_id=operation.id,
        resource_type=RESOURCE_TYPES[type(resource)],
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


def _move(resource: Resource, action: Action) -> None:
    resource.status, resource.status_message = action.transitional, None
    if isinstance(resource, Instance) and action.desired_state:
        resource.desired_state = action.desired_state
