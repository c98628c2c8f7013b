"""The log of facts, in order."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Integer, bindparam, select

from deployerp.api.answers import answer, fields_of
from deployerp.api.deps import CallerDep, ContextDep
from deployerp.api.errors import documented
from deployerp.api.routes import Route, needs
from deployerp.api.schemas import Envelope, View, enum_of
from deployerp.domain.events import Event
from deployerp.domain.lifecycles import ResourceType, event_types
from deployerp.domain.reads import Query as Statement

router = APIRouter(prefix="/v1/events", tags=["events"], route_class=Route)


class EventRead(View):
    id: UUID
    sequence: int
    type: Annotated[str, enum_of(event_types())]
    resource_type: ResourceType
    resource_id: UUID
    data: dict[str, Any]
    created_at: datetime


@router.get("", responses=documented(), response_model=Envelope[list[EventRead]])
@needs("read:events")
async def list_events(
    request: Request,
    shared: ContextDep,
    caller: CallerDep,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="The sequence of the last event that is known.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Response:
    """Events of the organization after one that is known, oldest first."""
    values = {"organization_id": caller.organization_id, "after": after, "limit": limit}
    return answer(request, await shared.reader.rows(caller.organization_id, _LATER, values))


_COLUMNS: Any = Event.__table__.columns  # type: ignore[attr-defined]
_LATER = Statement(
    select(*(_COLUMNS[name].label(alias) for name, alias in fields_of(EventRead)))
    .where(
        _COLUMNS.organization_id == bindparam("organization_id", type_=_COLUMNS.organization_id.type),
        _COLUMNS.sequence > bindparam("after", type_=Integer),
    )
    .order_by(_COLUMNS.sequence)
    .limit(bindparam("limit", type_=Integer))
)
