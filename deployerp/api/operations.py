"""Operations: what runs, how far it is, and how to stop it or try again."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.api.contract import ordering, streams
from deployerp.api.contract.changes import Change, ChangeDep, get_owned
from deployerp.api.contract.dependencies import CallerDep, Context, ContextDep
from deployerp.api.contract.envelope import Data, respond_single, serialize
from deployerp.api.contract.errors import documented
from deployerp.api.contract.lists import Text
from deployerp.api.contract.ordering import OperationSummary
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route, needs
from deployerp.api.contract.schemas import Envelope, View, enum_of
from deployerp.core.errors import InvalidState, NotFound, OperationInProgress, Unavailable
from deployerp.core.fields import EXAMPLE_TIME, FinishedAt
from deployerp.database.sessions import tenant_transaction
from deployerp.database.tenancy import Tenant
from deployerp.domain.operations.lifecycles import (
    OPEN_OPERATION_STATES,
    OPERATION_STATES,
    RETRYABLE_OPERATION_STATES,
    STEP_STATES,
)
from deployerp.domain.operations.operation import Operation, OperationStep
from deployerp.domain.operations.stateful import STATEFUL, action_of
from deployerp.domain.tables import lifecycles

router = APIRouter(prefix="/v1/operations", tags=["operations"], route_class=Route)


class StepRead(View):
    name: str = Field(description="Name of the step, for programs.", examples=["start_odoo"])
    title: str = Field(description="Title of the step, for people.", examples=["Start Odoo"])
    state: Annotated[str, enum_of(STEP_STATES)] = Field(
        description="State of the step.", examples=["running"]
    )
    detail: str | None = Field(
        description="Progress of the step, or why its last attempt failed; null if there is none.",
        examples=[None],
    )
    attempt: int = Field(description="Number of the current attempt, from 1.", examples=[1])
    next_attempt_at: datetime | None = Field(
        description="Time of the next attempt of a failed step (RFC 3339, UTC); null if none is scheduled.",
        examples=[None],
    )
    started_at: datetime = Field(
        description="Time of the start of the step (RFC 3339, UTC).", examples=[EXAMPLE_TIME]
    )
    finished_at: FinishedAt


class OperationRead(OperationSummary):
    steps: list[StepRead] = Field(description="Steps of the operation that have started, in their order.")


async def read(session: AsyncSession, operation: Operation) -> Data:
    """The operation with its steps."""
    steps = await session.scalars(
        select(OperationStep)
        .where(col(OperationStep.operation_id) == operation.id)
        .order_by(col(OperationStep.position))
    )
    told = [serialize(StepRead, step) for step in steps]
    return serialize(OperationSummary, operation) | {"steps": told}


serve(
    router,
    Operation,
    OperationSummary,
    filters={
        "state": Literal[OPERATION_STATES],
        "action": Text,
        "resource_type": Literal[tuple(lifecycles())],
        "resource_id": UUID,
    },
    single_view=False,
)


@router.get(
    "/{id}",
    responses=documented(NotFound),
    response_model=Envelope[OperationRead],
    summary="Get an operation",
)
@needs("read:operations")
async def get_operation(id: UUID, request: Request, shared: ContextDep, caller: CallerDep) -> Response:
    """Returns an operation and the steps that have started."""
    return respond_single(request, await _read_own(shared, caller.tenant, id))


@router.get(
    "/{id}/events",
    responses=documented(NotFound) | streams.documented(OperationRead),
    response_class=StreamingResponse,
    summary="Stream an operation",
)
@needs("read:operations")
async def stream_operation(
    id: UUID, request: Request, shared: ContextDep, caller: CallerDep
) -> StreamingResponse:
    """Streams the operation as server-sent events, at each change, until it ends."""
    streams.need_place(shared.watcher, caller.organization_id)
    await _read_own(shared, caller.tenant, id)
    return streams.stream(request, _changes_of(shared, caller.tenant, id))


async def _read_own(shared: Context, tenant: Tenant, id: UUID) -> Data:
    """Raises `NotFound`."""
    async with tenant_transaction(shared.sessions, tenant) as session:
        return await read(session, await get_owned(session, Operation, id, tenant))


async def _changes_of(shared: Context, tenant: Tenant, id: UUID) -> AsyncGenerator[bytes]:
    known: Data = {}
    with shared.watcher.following_operation(tenant.organization_id, id) as changes:
        while True:
            # Before the operation is read: what comes after that is told with the next read.
            seen = changes.latest
            told = await _read_own(shared, tenant, id)
            yield b"" if told == known else streams.message("operation", told)
            if told["state"] not in OPEN_OPERATION_STATES:
                return
            known = told
            while changes.latest <= seen:
                await changes.beyond(seen, within=streams.PATIENCE_SECONDS)
                yield b""


@router.post(
    "/{id}/cancel",
    status_code=202,
    responses=documented(NotFound, InvalidState),
    response_model=Envelope[OperationSummary],
    summary="Cancel an operation",
)
@needs("manage:operations")
async def cancel_operation(id: UUID, change: ChangeDep) -> Response:
    """Cancels an operation and those that it started, and undoes what they have created."""
    operation = await change.get_owned(Operation, id, lock=True)
    change.about = operation
    if operation.state not in OPEN_OPERATION_STATES:
        raise InvalidState(
            f"The operation has {operation.state} already.", details={"state": operation.state}
        )
    operations = (operation, *await _ordered_by(change, operation))
    for each in operations:
        each.state = "cancelling"
    # Also when it was never started: its workflow then finds that it was cancelled, and says so.
    response = ordering.respond_accepted(change, operation)
    change.afterwards += [partial(_cancel, change.shared, each.order.workflow_id) for each in operations]
    return response


async def _ordered_by(change: Change, operation: Operation) -> Sequence[Operation]:
    """The open operations that this one has ordered, locked."""
    found = await change.session.scalars(
        select(Operation)
        .where(col(Operation.parent_id) == operation.id, col(Operation.state).in_(OPEN_OPERATION_STATES))
        .order_by(col(Operation.id))
        .with_for_update()
    )
    return found.all()


async def _cancel(shared: Context, workflow_id: str) -> None:
    # Where Temporal does not answer, the sweep does the same.
    with suppress(Unavailable):
        await shared.temporal.cancel(workflow_id)


@router.post(
    "/{id}/retry",
    status_code=202,
    responses=documented(NotFound, InvalidState, OperationInProgress),
    response_model=Envelope[OperationSummary],
    summary="Retry an operation",
)
@needs("manage:operations")
async def retry_operation(id: UUID, change: ChangeDep) -> Response:
    """Starts a new operation with the action and parameters of a failed or cancelled one.

    Results of finished steps are kept. The caller also needs the permission of the action.
    """
    failed = await change.get_owned(Operation, id)
    if failed.state not in RETRYABLE_OPERATION_STATES:
        raise InvalidState(f"The operation is {failed.state}: only failed and cancelled ones are retried.")
    # Nobody does by trying again what they may not do by themselves.
    change.caller.need(action_of(failed.resource_type, failed.action).permission)
    resource = await change.get_owned(STATEFUL[failed.resource_type], failed.resource_id, lock=True)
    change.about = resource
    operation = await ordering.retry(change, failed, resource)
    return ordering.respond_accepted(change, operation)
