"""The log of facts, in order."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from sqlmodel import col

from deployerp.api.deps import Caller, SessionDep, require
from deployerp.api.errors import documented
from deployerp.api.requests import meta_of
from deployerp.api.schemas import Envelope, View, enum_of
from deployerp.domain.events import Event
from deployerp.domain.lifecycles import ResourceType, event_types

router = APIRouter(prefix="/v1/events", tags=["events"])


class EventRead(View):
    id: UUID
    sequence: int
    type: Annotated[str, enum_of(event_types())]
    resource_type: ResourceType
    resource_id: UUID
    data: dict[str, Any]
    created_at: datetime


@router.get("", responses=documented())
async def list_events(
    request: Request,
    session: SessionDep,
    caller: Annotated[Caller, require("read:events")],
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="The sequence of the last event that is known.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Envelope[list[EventRead]]:
    """Events of the organization after one that is known, oldest first."""
    found = await session.scalars(
        select(Event)
        .where(col(Event.organization_id) == caller.organization_id, col(Event.sequence) > after)
        .order_by(col(Event.sequence))
        .limit(limit)
    )
    return Envelope(data=[EventRead.model_validate(event) for event in found], meta=meta_of(request))
