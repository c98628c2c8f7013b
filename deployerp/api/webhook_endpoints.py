"""Webhook endpoints: where events are sent."""

from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import AfterValidator, Field
from sqlalchemy import select
from sqlmodel import col

from deployerp.api import changes
from deployerp.api.deps import Caller, ContextDep, SessionDep, require
from deployerp.api.errors import documented
from deployerp.api.pages import PageDep, page_of
from deployerp.api.requests import meta_of
from deployerp.api.schemas import Body, Envelope, ListEnvelope, View
from deployerp.domain.base import utc_now
from deployerp.domain.errors import NotFound
from deployerp.domain.lifecycles import event_types
from deployerp.domain.names import Description
from deployerp.domain.webhook_endpoints import WebhookEndpoint, new_webhook_secret
from deployerp.drivers.http import check_url

router = APIRouter(prefix="/v1/webhook-endpoints", tags=["webhook endpoints"])


def _known_pattern(pattern: str) -> str:
    if not any(fnmatchcase(known, pattern) for known in event_types()):
        raise ValueError(f"{pattern} matches no event type: they are in the documentation, e.g. `instance.*`")
    return pattern


Pattern = Annotated[str, Field(max_length=100, pattern=r"^[a-z_.*]+$"), AfterValidator(_known_pattern)]


class WebhookEndpointCreate(Body):
    url: Annotated[str, Field(max_length=2000), AfterValidator(check_url)] = Field(
        examples=["https://example.com/hooks"]
    )
    types: list[Pattern] = Field(
        ["*"],
        min_length=1,
        max_length=50,
        description="Event types; `*` stands for any part.",
        examples=[["instance.*"]],
    )
    description: Description | None = None


class WebhookEndpointRead(View):
    id: UUID
    url: str
    types: list[str]
    description: str | None
    enabled: bool
    disabled_reason: str | None
    created_at: datetime
    updated_at: datetime


class WebhookEndpointCreated(WebhookEndpointRead):
    secret: str = Field(description="Verifies signatures (Standard Webhooks); shown only now.")


@router.post("", status_code=201, responses=documented())
async def create_webhook_endpoint(
    body: WebhookEndpointCreate,
    request: Request,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:webhook-endpoints")],
) -> Envelope[WebhookEndpointCreated]:
    secret = new_webhook_secret()
    endpoint = WebhookEndpoint(
        organization_id=caller.organization_id, sealed_secret=shared.vault.seal(secret), **body.model_dump()
    )
    async with shared.sessions() as session, session.begin():
        session.add(endpoint)
    told = WebhookEndpointRead.model_validate(endpoint).model_dump()
    return Envelope(data=WebhookEndpointCreated(**told, secret=secret), meta=meta_of(request))


@router.get("", responses=documented())
async def list_webhook_endpoints(
    request: Request,
    session: SessionDep,
    page: PageDep,
    caller: Annotated[Caller, require("read:webhook-endpoints")],
) -> ListEnvelope[WebhookEndpointRead]:
    query = select(WebhookEndpoint).where(
        col(WebhookEndpoint.organization_id) == caller.organization_id,
        col(WebhookEndpoint.deleted_at).is_(None),
    )
    return await page_of(request, session, query, WebhookEndpoint, WebhookEndpointRead, page)


@router.get("/{id}", responses=documented(NotFound))
async def get_webhook_endpoint(
    id: UUID,
    request: Request,
    session: SessionDep,
    caller: Annotated[Caller, require("read:webhook-endpoints")],
) -> Envelope[WebhookEndpointRead]:
    endpoint = await changes.owned(session, WebhookEndpoint, id, caller)
    return Envelope(data=WebhookEndpointRead.model_validate(endpoint), meta=meta_of(request))


@router.delete("/{id}", status_code=204, responses=documented(NotFound))
async def delete_webhook_endpoint(
    id: UUID, shared: ContextDep, caller: Annotated[Caller, require("delete:webhook-endpoints")]
) -> None:
    """Stops sending; deliveries under way are given up."""
    async with shared.sessions() as session, session.begin():
        endpoint = await changes.owned(session, WebhookEndpoint, id, caller)
        endpoint.deleted_at, endpoint.enabled = utc_now(), False
