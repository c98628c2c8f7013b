"""Taking resources through their lifecycles: the operation that a workflow then carries out."""

from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import Response
from pydantic import Field
from sqlalchemy import select
from sqlmodel import col

from deployerp.api.contract.changes import Change
from deployerp.api.contract.envelope import Data, serialize
from deployerp.api.contract.schemas import EXAMPLE_PARTS, View, enum_of
from deployerp.core.errors import Conflict, InvalidState, Unavailable
from deployerp.core.fields import (
    ActionName,
    CreatedAt,
    ErrorCode,
    ErrorMessage,
    FinishedAt,
    OperationId,
    ResourceId,
    StartedAt,
)
from deployerp.domain.operations import ordering
from deployerp.domain.operations.lifecycles import OPEN_OPERATION_STATES, OPERATION_STATES, Lifecycle
from deployerp.domain.operations.messages import OperationOrder
from deployerp.domain.operations.operation import Operation
from deployerp.domain.operations.stateful import Stateful
from deployerp.domain.tables import lifecycles


class OperationSummary(View):
    id: OperationId
    resource_type: Annotated[str, enum_of(tuple(lifecycles()))] = Field(
        description="Type of the resource.", examples=["instance"]
    )
    resource_id: ResourceId
    action: ActionName
    parameters: dict[str, Any] = Field(
        description="Parameters of the action; a retry uses the same.", examples=[{}]
    )
    state: Annotated[str, enum_of(OPERATION_STATES)] = Field(
        description="State of the operation.", examples=["pending"]
    )
    error_code: ErrorCode
    error_message: ErrorMessage
    retry_of: OperationId | None = Field(
        description="ID of the operation that this one retries; null if it is no retry.", examples=[None]
    )
    parent_id: OperationId | None = Field(
        description="ID of the operation that started this one; null if a request did.", examples=[None]
    )
    created_at: CreatedAt
    started_at: StartedAt
    finished_at: FinishedAt


def first_of(lifecycle: Lifecycle) -> dict[str, Any]:
    """What a schema adds to an operation of this kind of resource, for its example."""
    return {EXAMPLE_PARTS: {"resourceType": lifecycle.resource_type, "action": lifecycle.first.name}}


async def create(change: Change, resource: Stateful, taken: Conflict, parameters: object = None) -> Operation:
    """Adds a new resource and the operation that brings it into being. Raises `taken` for a name in use."""
    await change.add(resource, taken)
    return await _order(change, resource, resource.lifecycle.first.name, parameters)


async def act(
    change: Change, resource: Stateful, action: str, parameters: object = None, *, force: bool = False
) -> Operation:
    """Orders an action on a locked resource. Raises `OperationInProgress` and `InvalidState`.

    With `force` it takes the place of the operations that hold the resource.
    """
    if force:
        for closed in await ordering.supersede(change.session, resource):
            change.afterwards.append(partial(_end, change, closed.order))
    return await _order(change, resource, action, parameters, force=force)


async def retry(change: Change, failed: Operation, resource: Stateful) -> Operation:
    """A new operation with the same order, for a locked resource that the last one left failed.

    Raises `OperationInProgress` and `InvalidState`.
    """
    latest = await change.session.scalar(
        select(col(Operation.id))
        .where(
            col(Operation.resource_id) == resource.id,
            col(Operation.state).not_in(OPEN_OPERATION_STATES),
        )
        .order_by(col(Operation.created_at).desc(), col(Operation.id).desc())
        .limit(1)
    )
    if latest != failed.id:
        raise InvalidState(
            "Only the latest operation of a resource can be retried.",
            details={"latest_operation_id": str(latest)},
        )
    return await _order(change, resource, failed.action, force=failed.force, retry_of=failed)


async def _order(
    change: Change, resource: Stateful, action: str, parameters: object = None, **options: Any
) -> Operation:
    actor = ordering.Actor(change.caller.actor_id)
    operation = await ordering.order(change.session, actor, resource, action, parameters, **options)
    change.tracker.add(operation)
    return operation


async def _end(change: Change, order: OperationOrder) -> None:
    # Where Temporal does not answer, the workflow ends by itself: steps of closed operations are refused.
    with suppress(Unavailable):
        await change.shared.temporal.terminate(order.workflow_id, "A deletion by force took its place.")


def respond_accepted(change: Change, operation: Operation, data: Data | None = None) -> Response:
    """202 with where the operation is; its workflow is started once all is written.

    The data is the operation itself, unless some is given.
    """
    change.afterwards.append(partial(change.shared.temporal.offer_operation, operation.order))
    headers = {"Location": f"/v1/operations/{operation.id}"}
    return change.answer(data or serialize(OperationSummary, operation), status=202, headers=headers)


async def respond_with_resource(
    change: Change, operation: Operation, view: type[View], resource: Stateful
) -> Response:
    """202 with the resource and its operation."""
    # What the database sets, such as the time of the update, is known after the flush.
    await change.session.flush()
    told = {"operation": serialize(OperationSummary, operation)}
    return respond_accepted(change, operation, serialize(view, resource) | told)
