"""The catalogue of event types, for tools."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from deployerp.api.contract.envelope import respond, serialize
from deployerp.api.contract.errors import limited
from deployerp.api.contract.routes import Route, public
from deployerp.api.contract.schemas import Envelope, View
from deployerp.domain.events.types import EVENT_TYPES, SAMPLE

router = APIRouter(prefix="/v1/event-types", tags=["events"], route_class=Route)


class EventTypeRead(View):
    name: str = Field(examples=[SAMPLE.name])
    when: str = Field(examples=[SAMPLE.when])
    announced: bool = Field(
        description="It can be asked for, and is sent by a later release.", examples=[False]
    )
    json_schema: dict[str, Any] = Field(
        alias="schema", description="JSON schema of a webhook's body.", examples=[SAMPLE.json_schema]
    )
    example: dict[str, Any] = Field(description="A webhook's body.", examples=[SAMPLE.example])


class EventCatalogue(View):
    types: list[EventTypeRead]


_TYPES = [serialize(EventTypeRead, each) for each in EVENT_TYPES.values()]


# The contract has the same, and anybody may read that.
@router.get("", responses=limited(), response_model=Envelope[EventCatalogue])
@public
async def get_event_types(request: Request) -> Response:
    """Every event type: when an event is written, and what is sent of it."""
    return respond(request, {"types": _TYPES})
