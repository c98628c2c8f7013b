"""Operations: what runs, how far it is, and how to stop it or try again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.api import changes
from deployerp.api.deps import Caller, Context, ContextDep, SessionDep, require
from deployerp.api.errors import documented
from deployerp.api.pages import PageDep, page_of
from deployerp.api.requests import meta_of
from deployerp.api.schemas import Envelope, ListEnvelope, View, enum_of
from deployerp.domain.errors import InvalidState, NotFound, OperationInProgress, Unavailable
from deployerp.domain.instances import Instance
from deployerp.domain.lifecycles import (
    OPEN_OPERATION_STATES,
    OPERATION_STATES,
    RETRYABLE_OPERATION_STATES,
    STEP_STATES,
    ResourceType,
)
from deployerp.domain.operations import Operation, OperationStep
from deployerp.domain.servers import Server
from deployerp.domain.steps import STEPS

router = APIRouter(prefix="/v1/operations", tags=["operations"])
_POLL_SECONDS = 0.3
# Proxies close a stream that is silent for long.
_SILENCE_SECONDS = 15


class StepRead(View):
    name: str
    title: str
    state: Annotated[str, enum_of(STEP_STATES)]
    detail: str | None
    attempt: int
    started_at: datetime
    finished_at: datetime | None


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


class OperationRead(OperationSummary):
    steps: list[StepRead]


def location_of(operation: Operation) -> str:
    return f"/v1/operations/{operation.id}"


def accepted(response: Response, operation: Operation) -> OperationSummary:
    """Points a 202 answer at its operation."""
    response.headers["Location"] = location_of(operation)
    return OperationSummary.model_validate(operation)


async def read(session: AsyncSession, operation: Operation) -> OperationRead:
    steps = await session.scalars(
        select(OperationStep)
        .where(col(OperationStep.operation_id) == operation.id)
        .order_by(col(OperationStep.position))
    )
    told: dict[str, Any] = OperationSummary.model_validate(operation).model_dump()
    return OperationRead(
        **told,
        steps=[
            StepRead(title=STEPS.get(step.name, step.name), **step.model_dump(include=_STEP_FIELDS))
            for step in steps
        ],
    )


_STEP_FIELDS = set(StepRead.model_fields) - {"title"}


@router.get("", responses=documented())
async def list_operations(
    request: Request,
    session: SessionDep,
    page: PageDep,
    caller: Annotated[Caller, require("read:operations")],
) -> ListEnvelope[OperationSummary]:
    query = select(Operation).where(col(Operation.organization_id) == caller.organization_id)
    return await page_of(request, session, query, Operation, OperationSummary, page)


@router.get("/{id}", responses=documented(NotFound))
async def get_operation(
    id: UUID, request: Request, session: SessionDep, caller: Annotated[Caller, require("read:operations")]
) -> Envelope[OperationRead]:
    operation = await changes.owned(session, Operation, id, caller)
    return Envelope(data=await read(session, operation), meta=meta_of(request))


@router.get(
    "/{id}/events",
    responses=documented(NotFound) | {200: {"content": {"text/event-stream": {}}}},
    response_class=StreamingResponse,
)
async def stream_operation(
    id: UUID, shared: ContextDep, session: SessionDep, caller: Annotated[Caller, require("read:operations")]
) -> StreamingResponse:
    """Server-sent events: the whole operation at each change, until it has ended."""
    await changes.owned(session, Operation, id, caller)
    await session.close()
    return StreamingResponse(
        _changes_of(shared, id), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _changes_of(shared: Context, id: UUID) -> AsyncIterator[str]:
    told, silent = "", 0.0
    while True:
        async with shared.sessions() as session:
            operation = await session.get(Operation, id)
            assert operation is not None  # noqa: S101  (operations are never deleted)
            state, body = operation.state, (await read(session, operation)).model_dump_json(by_alias=True)
        if body != told:
            told, silent = body, 0.0
            yield f"event: operation\ndata: {body}\n\n"
        elif silent > _SILENCE_SECONDS:
            silent = 0.0
            yield ": still here\n\n"
        if state not in OPEN_OPERATION_STATES:
            return
        await asyncio.sleep(_POLL_SECONDS)
        silent += _POLL_SECONDS


@router.post("/{id}/cancel", status_code=202, responses=documented(NotFound, InvalidState))
async def cancel_operation(
    id: UUID,
    request: Request,
    response: Response,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:operations")],
) -> Envelope[OperationSummary]:
    """Asks the operation to stop and to undo what it has made."""
    async with shared.sessions() as session, session.begin():
        operation = await changes.owned(session, Operation, id, caller, lock=True)
        if operation.state not in OPEN_OPERATION_STATES:
            raise InvalidState(
                f"The operation has {operation.state} already.", details={"state": operation.state}
            )
        operation.state = "cancelling"
    # Where Temporal does not answer, the sweep does the same.
    with suppress(Unavailable):
        # Also when it was never started: its workflow then finds that it was cancelled, and says so.
        await shared.temporal.start_operation(operation.order)
        await shared.temporal.cancel(operation.order.workflow_id)
    return Envelope(data=accepted(response, operation), meta=meta_of(request))


@router.post(
    "/{id}/retry", status_code=202, responses=documented(NotFound, InvalidState, OperationInProgress)
)
async def retry_operation(
    id: UUID,
    request: Request,
    response: Response,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:operations")],
) -> Envelope[OperationSummary]:
    """Begins a new operation with the order of a failed or cancelled one; what is there already is kept."""
    async with shared.sessions() as session, session.begin():
        failed = await changes.owned(session, Operation, id, caller)
        if failed.state not in RETRYABLE_OPERATION_STATES:
            raise InvalidState(
                f"The operation is {failed.state}: only failed and cancelled ones are retried."
            )
        resource = await changes.owned(session, _MODELS[failed.typed_resource], failed.resource_id, caller)
        operation = await changes.retry(session, failed, resource, caller)
    await shared.temporal.offer_operation(operation.order)
    return Envelope(data=accepted(response, operation), meta=meta_of(request))


_MODELS: dict[ResourceType, Any] = {"server": Server, "instance": Instance}
