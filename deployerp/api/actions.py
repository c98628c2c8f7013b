"""Taking resources through their lifecycles: the operation that a workflow then carries out."""

from datetime import datetime
from functools import partial
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Response
from sqlalchemy import select
from sqlmodel import col

from deployerp.api.answers import Data, shown
from deployerp.api.changes import Change
from deployerp.api.examples import PARTS
from deployerp.api.schemas import View, enum_of
from deployerp.domain.base import utc_now
from deployerp.domain.errors import Conflict, InvalidState, OperationInProgress
from deployerp.domain.instances import Instance
from deployerp.domain.lifecycles import LIFECYCLES, OPEN_OPERATION_STATES, OPERATION_STATES, ResourceType
from deployerp.domain.operations import Operation
from deployerp.domain.servers import Server

Resource = TypeVar("Resource", Server, Instance)


class OperationSummary(View):
    id: UUID
    resource_type: ResourceType
    resource_id: UUID
    action: str
    state: Annotated[str, enum_of(OPERATION_STATES)]
    error_code: str | None
    error_message: str | None
    retry_of: UUID | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def first_of(resource_type: ResourceType) -> dict[str, Any]:
    """What a schema adds to an operation of this kind of resource, for its example."""
    return {PARTS: {"resourceType": resource_type, "action": LIFECYCLES[resource_type].first.name}}


RESOURCE_TYPES: dict[type[Server] | type[Instance], ResourceType] = {Server: "server", Instance: "instance"}


async def create(change: Change, resource: Resource, taken: Conflict) -> Operation:
    """Adds a new resource and the operation that brings it into being. Raises `taken` for a name in use."""
    await change.add(resource, taken)
    lifecycle = LIFECYCLES[RESOURCE_TYPES[type(resource)]]
    return await _order(change, resource, lifecycle.first.name)


async def act(change: Change, resource: Resource, action_name: str, *, force: bool = False) -> Operation:
    """Takes a locked resource on its way. Raises `OperationInProgress` and `InvalidState`."""
    action = LIFECYCLES[RESOURCE_TYPES[type(resource)]].actions[action_name]
    await _refuse_second(change, resource)
    _move(resource, action.from_states, action.transitional, action_name)
    return await _order(change, resource, action_name, force=force)


async def retry(change: Change, failed: Operation, resource: Resource) -> Operation:
    """A new operation with the same order, for a locked resource that the last one left failed.

    Raises `OperationInProgress` and `InvalidState`.
    """
    await _refuse_second(change, resource)
    latest = await change.session.scalar(
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
    _move(resource, ("failed",), action.transitional, "retry")
    return await _order(change, resource, failed.action, force=failed.force, retry_of=failed.id)


async def supersede(change: Change, resource: Resource) -> Operation | None:
    """Closes the open operation of a resource that is forgotten by force; its workflow is to be ended.

    One by force is left alone: whoever asks twice does not want it to begin anew.
    """
    operation = await _open_operation(change, resource.id)
    if operation is None or operation.force:
        return None
    operation.state, operation.finished_at = "cancelled", utc_now()
    operation.error_code = "superseded"
    operation.error_message = f"The {operation.resource_type} was deleted by force."
    resource.status = "failed"
    # Two open operations of a resource cannot be, not even for the length of a transaction.
    await change.session.flush()
    return operation


def accepted(change: Change, operation: Operation, data: Data | None = None) -> Response:
    """202 with where the operation is; its workflow is started once all is written.

    The data is the operation itself, unless some is given.
    """
    change.afterwards.append(partial(change.shared.temporal.offer_operation, operation.order))
    headers = {"Location": f"/v1/operations/{operation.id}"}
    return change.answer(data or shown(OperationSummary, operation), status=202, headers=headers)


def begun(change: Change, operation: Operation, view: type[View], resource: Resource) -> Response:
    """202 with the resource and its operation."""
    told = {"operation": shown(OperationSummary, operation)}
    return accepted(change, operation, shown(view, resource) | told)


async def _open_operation(change: Change, resource_id: UUID) -> Operation | None:
    found: Operation | None = await change.session.scalar(
        select(Operation).where(
            col(Operation.resource_id) == resource_id, col(Operation.state).in_(OPEN_OPERATION_STATES)
        )
    )
    return found


async def _refuse_second(change: Change, resource: Resource) -> None:
    running = await _open_operation(change, resource.id)
    if running is not None:
        raise OperationInProgress(
            f"Operation `{running.action}` runs on this {running.resource_type}: wait for it or cancel it.",
            details={"operation_id": str(running.id)},
        )


def _move(resource: Resource, from_states: tuple[str, ...], to: str, action: str) -> None:
    if resource.status not in from_states:
        raise InvalidState(
            f"`{action}` needs the status {' or '.join(from_states)}, and it is {resource.status}.",
            details={"status": resource.status, "allowed": list(from_states)},
        )
    resource.status, resource.status_message = to, None


async def _order(
    change: Change, resource: Resource, action: str, *, force: bool = False, retry_of: UUID | None = None
) -> Operation:
    operation = Operation(
        organization_id=resource.organization_id,
        resource_type=RESOURCE_TYPES[type(resource)],
        resource_id=resource.id,
        action=action,
        force=force,
        requested_by=change.caller.actor_id,
        retry_of=retry_of,
    )
    # The index is the last word on one operation at a time.
    second = OperationInProgress("Another operation has just begun: wait for it or cancel it.")
    await change.put(operation, second)
    return operation
