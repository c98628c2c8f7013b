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


# Only the beginning of one: a whole schema is longer than the rest of the response.
_SCHEMA = {"title": SAMPLE.message.__name__, "type": "object", "required": ["type", "timestamp", "data"]}


class EventTypeRead(View):
    name: str = Field(description="Event type.", examples=[SAMPLE.name])
    when: str = Field(description="When an event of the type is written.", examples=[SAMPLE.when])
    announced: bool = Field(
        description="Whether a later release sends the type; endpoints can subscribe to it now.",
        examples=[False],
    )
    json_schema: dict[str, Any] = Field(
        alias="schema", description="JSON schema of the body of a webhook.", examples=[_SCHEMA]
    )
    example: dict[str, Any] = Field(description="Body of a webhook.", examples=[SAMPLE.example])


class EventCatalogue(View):
    types: list[EventTypeRead] = Field(description="Event types, sorted by name.")


_TYPES = [serialize(EventTypeRead, each) for each in EVENT_TYPES.values()]


# The contract has the same, and anybody may read that.
@router.get("", responses=limited(), response_model=Envelope[EventCatalogue], summary="List event types")
@public
async def get_event_types(request: Request) -> Response:
    """Returns all event types with the JSON schema and an example of their webhooks."""
    return respond(request, {"types": _TYPES})
