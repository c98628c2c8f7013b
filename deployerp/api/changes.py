"""The path of every change that takes longer than a request: one transaction, then a workflow.

What is written here is the outbox: when Temporal does not answer, the sweep starts the workflow.
"""

from typing import Any, TypeVar, cast
from uuid import UUID

from sqlalchemy import CursorResult, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.api.deps import Caller
from deployerp.domain.base import utc_now
from deployerp.domain.errors import Conflict, InvalidState, NotFound, OperationInProgress
from deployerp.domain.instances import Instance
from deployerp.domain.lifecycles import LIFECYCLES, OPEN_OPERATION_STATES, ResourceType
from deployerp.domain.operations import Operation
from deployerp.domain.servers import Server

Resource = TypeVar("Resource", Server, Instance)
Owned = TypeVar("Owned")
RESOURCE_TYPES: dict[type[Server] | type[Instance], ResourceType] = {Server: "server", Instance: "instance"}


async def owned(
    session: AsyncSession, model: type[Owned], id: UUID, caller: Caller, *, lock: bool = False
) -> Owned:
    """The caller's own object; another organization's does not exist for it. Raises `NotFound`.

    With `lock` nobody else changes it before the transaction ends.
    """
    found = await session.get(model, id, with_for_update=lock)
    if (
        found is None
        or found.organization_id != caller.organization_id  # type: ignore[attr-defined]
        or getattr(found, "deleted_at", None)
    ):
        raise NotFound(f"There is no {model.__name__.lower()} {id}.")
    return found


async def create(session: AsyncSession, resource: Resource, caller: Caller, taken: Conflict) -> Operation:
    """Adds a new resource and the operation that brings it into being. Raises `taken` for a name in use."""
    await add_unique(session, resource, taken)
    lifecycle = LIFECYCLES[RESOURCE_TYPES[type(resource)]]
    return await _add_operation(session, resource, lifecycle.first.name, caller)


async def add_unique(session: AsyncSession, record: object, taken: Conflict) -> None:
    try:
        async with session.begin_nested():
            session.add(record)
    except IntegrityError:
        raise taken from None


async def act(
    session: AsyncSession, resource: Resource, action_name: str, caller: Caller, *, force: bool = False
) -> Operation:
    """Takes a resource on its way by compare-and-set. Raises `OperationInProgress`, `InvalidState`."""
    action = LIFECYCLES[RESOURCE_TYPES[type(resource)]].actions[action_name]
    await _refuse_second(session, resource)
    await _move(session, resource, action.from_states, action.transitional, action_name)
    return await _add_operation(session, resource, action_name, caller, force=force)


async def retry(session: AsyncSession, failed: Operation, resource: Resource, caller: Caller) -> Operation:
    """A new operation with the same order, for a resource that the last one left failed.

    Raises `OperationInProgress`, `InvalidState`.
    """
    await _refuse_second(session, resource)
    latest = await session.scalar(
        select(col(Operation.id))
        .where(col(Operation.resource_id) == resource.id)
        .order_by(col(Operation.created_at).desc(), col(Operation.id).desc())
        .limit(1)
    )
    if latest != failed.id:
        raise InvalidState(
            "Only the latest operation of a resource can be retried.",
            details={"latest_operation_id": str(latest)},
        )
    action = LIFECYCLES[failed.typed_resource].actions[failed.action]
    await _move(session, resource, ("failed",), action.transitional, "retry")
    return await _add_operation(
        session, resource, failed.action, caller, force=failed.force, retry_of=failed.id
    )


async def supersede(session: AsyncSession, resource: Resource) -> Operation | None:
    """Closes the open operation of a resource that is forgotten by force; its workflow is to be ended."""
    operation = await _open_operation(session, resource.id)
    if operation is not None:
        operation.state, operation.finished_at = "cancelled", utc_now()
        operation.error_code = "superseded"
        operation.error_message = f"The {operation.resource_type} was deleted by force."
        resource.status = "failed"
        await session.flush()
    return operation


async def _open_operation(session: AsyncSession, resource_id: UUID) -> Operation | None:
    found: Operation | None = await session.scalar(
        select(Operation).where(
            col(Operation.resource_id) == resource_id, col(Operation.state).in_(OPEN_OPERATION_STATES)
        )
    )
    return found


async def _refuse_second(session: AsyncSession, resource: Resource) -> None:
    running = await _open_operation(session, resource.id)
    if running is not None:
        raise _in_progress(running)


def _in_progress(running: Operation) -> OperationInProgress:
    return OperationInProgress(
        f"Operation `{running.action}` runs on this {running.resource_type}: wait for it or cancel it.",
        details={"operation_id": str(running.id)},
    )


async def _move(
    session: AsyncSession, resource: Resource, from_states: tuple[str, ...], to: str, action: str
) -> None:
    model = type(resource)
    moved = await session.execute(
        update(model)
        .where(col(model.id) == resource.id, col(model.status).in_(from_states))
        .values(status=to, status_message=None)
    )
    if cast("CursorResult[Any]", moved).rowcount != 1:
        # Of two requests at once the second sees here what the first has begun.
        await _refuse_second(session, resource)
        await session.refresh(resource)
        raise InvalidState(
            f"`{action}` needs the status {' or '.join(from_states)}, and it is {resource.status}.",
            details={"status": resource.status, "allowed": list(from_states)},
        )
    await session.refresh(resource)


async def _add_operation(
    session: AsyncSession,
    resource: Resource,
    action: str,
    caller: Caller,
    *,
    force: bool = False,
    retry_of: UUID | None = None,
) -> Operation:
    operation = Operation(
        organization_id=resource.organization_id,
        resource_type=RESOURCE_TYPES[type(resource)],
        resource_id=resource.id,
        action=action,
        force=force,
        requested_by=caller.key_id,
        retry_of=retry_of,
    )
    try:
        async with session.begin_nested():
            session.add(operation)
    except IntegrityError:
        # Two requests at once: the index let one through.
        running = await _open_operation(session, resource.id)
        raise (_in_progress(running) if running else Conflict("Try again.")) from None
    return operation
