"""Webhook endpoints: where events are sent."""

from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field

from deployerp.api.changes import ChangeDep
from deployerp.api.errors import documented
from deployerp.api.resources import serve
from deployerp.api.routes import Route, needs
from deployerp.api.schemas import Body, Envelope, View
from deployerp.domain.base import utc_now
from deployerp.domain.errors import NotFound, PreconditionFailed
from deployerp.domain.lifecycles import event_types
from deployerp.domain.names import Description
from deployerp.domain.webhook_endpoints import WebhookEndpoint, new_webhook_secret
from deployerp.drivers.http import check_url

router = APIRouter(prefix="/v1/webhook-endpoints", tags=["webhook endpoints"], route_class=Route)


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


@router.post("", status_code=201, responses=documented(), response_model=Envelope[WebhookEndpointCreated])
@needs("manage:webhook-endpoints")
async def create_webhook_endpoint(body: WebhookEndpointCreate, change: ChangeDep) -> Response:
    """Adds a receiver; its secret is shown only now."""
    secret = new_webhook_secret()
    endpoint = WebhookEndpoint(
        organization_id=change.caller.organization_id,
        sealed_secret=change.shared.vault.seal(secret),
        **body.model_dump(),
    )
    await change.add(endpoint)
    return await change.told(WebhookEndpointRead, endpoint, 201, secret=secret)


serve(
    router,
    WebhookEndpoint,
    WebhookEndpointRead,
    filters={"enabled": bool},
    search=("url", "description"),
)


@router.delete("/{id}", status_code=204, responses=documented(NotFound, PreconditionFailed))
@needs("delete:webhook-endpoints")
async def delete_webhook_endpoint(id: UUID, change: ChangeDep) -> Response:
    """Stops sending; deliveries under way are given up."""
    endpoint = await change.subject(WebhookEndpoint, WebhookEndpointRead, id)
    endpoint.deleted_at, endpoint.enabled = utc_now(), False
    return Response(status_code=204)
