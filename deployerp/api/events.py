"""The log of facts, in order."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from deployerp.api.resources import serve
from deployerp.api.routes import Route
from deployerp.api.schemas import View, enum_of
from deployerp.domain.events import Event
from deployerp.domain.lifecycles import ResourceType, event_types

router = APIRouter(prefix="/v1/events", tags=["events"], route_class=Route)


class EventRead(View):
    id: UUID
    sequence: int
    type: Annotated[str, enum_of(event_types())]
    resource_type: ResourceType
    resource_id: UUID
    data: dict[str, Any]
    created_at: datetime


serve(
    router,
    Event,
    EventRead,
    filters={
        "after": Annotated[
            int, Field(ge=0, le=2**31 - 1, description="Only later ones: the sequence of the last known.")
        ],
        "type": Literal[event_types()],
        "resource_type": ResourceType,
        "resource_id": UUID,
    },
    sorts=("sequence", "created_at"),
    order="asc",
)
