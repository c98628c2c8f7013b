"""The log of facts, in order: to be read from any point, and to be followed."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deployerp.api.contract import streams
from deployerp.api.contract.dependencies import CallerDep, Context, ContextDep
from deployerp.api.contract.envelope import Data
from deployerp.api.contract.errors import documented, invalid_field
from deployerp.api.contract.lists import ListQuery
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route, needs
from deployerp.api.contract.schemas import View, enum_of
from deployerp.core.fields import CreatedAt, Id, ResourceId
from deployerp.database.tenancy import Tenant
from deployerp.domain.events.event import Event
from deployerp.domain.events.types import EVENT_TYPES, SAMPLE, EventPattern, EventResource

router = APIRouter(prefix="/v1/events", tags=["events"], route_class=Route)
_PAGE = 100


class EventRead(View):
    id: Id
    sequence: int = Field(
        description="Number of the event in the organization, from 1, without gaps.", examples=[42]
    )
    type: Annotated[str, enum_of(tuple(EVENT_TYPES))] = Field(
        description="Event type.", examples=[SAMPLE.name]
    )
    resource_type: EventResource = Field(description="Type of the resource.", examples=["instance"])
    resource_id: ResourceId
    data: dict[str, Any] = Field(
        description="The resource after the event, as in a webhook.", examples=[SAMPLE.sample.serialize()]
    )
    created_at: CreatedAt


def _as_like(pattern: str) -> str:
    """As SQL spells it."""
    return pattern.replace("_", "\\_").replace("*", "%")


Sequence = Annotated[int, Field(ge=0, le=2**31 - 1)]
After = Annotated[Sequence, Field(description="Only events with a greater `sequence`.")]
TypeFilter = Annotated[
    EventPattern,
    AfterValidator(_as_like),
    Field(description="Filter by event type; `*` matches any part.", examples=["instance.*"]),
]


class Wanted(BaseModel):
    """What a client that follows the log may ask for."""

    model_config = ConfigDict(extra="forbid")

    after: After | None = Field(
        None, description="Start after this `sequence`; the default is the latest event."
    )
    type: TypeFilter | None = Field(None, description="Filter by event type; `*` matches any part.")
    resource_id: UUID | None = Field(None, description="Filter by the ID of the resource.")


LastEventId = Annotated[
    Sequence | None,
    Header(
        alias="Last-Event-ID",
        description="`id` of the last received event; it takes precedence over `after`.",
    ),
]


@router.get(
    "/stream",
    responses=documented() | streams.documented(EventRead),
    response_class=StreamingResponse,
    summary="Stream events",
)
@needs("read:events")
async def stream_events(
    request: Request,
    shared: ContextDep,
    caller: CallerDep,
    wanted: Annotated[Wanted, Query()],
    last_event_id: LastEventId = None,
) -> StreamingResponse:
    """Streams new events as server-sent events.

    `id` is the sequence of the event, `event` its type, and `data` the event as in the list. Send the last
    `id` as `Last-Event-ID` to continue after it.
    """
    streams.need_place(shared.watcher, caller.organization_id)
    latest = await shared.watcher.latest(caller.organization_id)
    for name, given in (("Last-Event-ID", last_event_id), ("after", wanted.after)):
        if given is not None and given > latest:
            raise invalid_field(name, f"must be at most {latest}, the sequence of the latest event")
    known = wanted.after if last_event_id is None else last_event_id
    filters = wanted.model_dump(exclude_none=True, exclude={"after"})
    position = latest if known is None else known
    return streams.stream(request, _messages(shared, caller.tenant, position, filters))


async def _messages(shared: Context, tenant: Tenant, position: int, filters: Data) -> AsyncGenerator[bytes]:
    with shared.watcher.following(tenant.organization_id) as log:
        while True:
            # Before the page is read: up to there it holds all that fits.
            latest = log.latest
            events = await _page(shared, tenant, {"after": position} | filters)
            yield b"".join(streams.message(each["type"], each, each["sequence"]) for each in events)
            position = max([position, *(each["sequence"] for each in events)])
            if len(events) < _PAGE:
                position = max(position, latest)
                while log.latest <= position:
                    await log.beyond(position, within=streams.PATIENCE_SECONDS)
                    yield b""


async def _page(shared: Context, tenant: Tenant, filters: Data) -> list[Data]:
    asked = ListQuery(1, _PAGE, "sequence", "asc", None, tuple(sorted(filters.items())), ())
    query, values = LOG.query(asked, counted=False), LOG.values(asked)
    return (await shared.reader.rows(tenant, query, values))[:_PAGE]


LOG = serve(
    router,
    Event,
    EventRead,
    filters={
        "after": After,
        "type": TypeFilter,
        "resource_type": EventResource,
        "resource_id": UUID,
    },
    sorts=("sequence", "created_at"),
    order="asc",
)
