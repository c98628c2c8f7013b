"""Webhook deliveries: one event to one endpoint, and each try of it."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import select
from sqlmodel import col

from deployerp.api.answers import shown, single
from deployerp.api.changes import Change, ChangeDep, owned
from deployerp.api.deps import CallerDep, ContextDep
from deployerp.api.errors import documented
from deployerp.api.lists import Text
from deployerp.api.resources import serve
from deployerp.api.routes import Route, needs
from deployerp.api.schemas import Envelope, View, enum_of
from deployerp.domain.base import utc_now
from deployerp.domain.database import tenant_transaction
from deployerp.domain.errors import InvalidState, NotFound
from deployerp.domain.lifecycles import DELIVERY_STATES
from deployerp.domain.messages import EndpointOrder
from deployerp.domain.webhook_deliveries import WebhookAttempt, WebhookDelivery
from deployerp.domain.webhook_endpoints import WebhookEndpoint
from deployerp.domain.webhook_queue import wake
from deployerp.domain.webhook_replays import send_again

router = APIRouter(prefix="/v1/webhook-deliveries", tags=["webhook deliveries"], route_class=Route)


class AttemptRead(View):
    number: int
    status_code: int | None
    error: str | None
    duration_ms: int
    response_excerpt: str | None
    created_at: datetime


class DeliverySummary(View):
    id: UUID
    endpoint_id: UUID
    event_id: UUID
    event_type: str
    state: Annotated[str, enum_of(DELIVERY_STATES)]
    attempts: int
    error: str | None = Field(description="What was wrong with the last try.", examples=[None])
    next_attempt_at: datetime | None = Field(
        description="Of one that is pending: when it is tried, at the earliest.", examples=[None]
    )
    created_at: datetime
    finished_at: datetime | None


class DeliveryRead(DeliverySummary):
    attempt_log: list[AttemptRead]


serve(
    router,
    WebhookDelivery,
    DeliverySummary,
    filters={"state": Literal[DELIVERY_STATES], "endpoint_id": UUID, "event_id": UUID, "event_type": Text},
    single_view=False,
)


@router.get("/{id}", responses=documented(NotFound), response_model=Envelope[DeliveryRead])
@needs("read:webhook-deliveries")
async def get_webhook_delivery(id: UUID, request: Request, shared: ContextDep, caller: CallerDep) -> Response:
    """The delivery, with every attempt."""
    async with tenant_transaction(shared.sessions, caller.organization_id) as session:
        delivery = await owned(session, WebhookDelivery, id, caller.organization_id)
        attempts = await session.scalars(
            select(WebhookAttempt)
            .where(col(WebhookAttempt.delivery_id) == id)
            .order_by(col(WebhookAttempt.number))
        )
        log = [shown(AttemptRead, attempt) for attempt in attempts]
    return single(request, shown(DeliverySummary, delivery) | {"attemptLog": log})


@router.post(
    "/{id}/resend",
    status_code=202,
    responses=documented(NotFound, InvalidState),
    response_model=Envelope[DeliverySummary],
)
@needs("manage:webhook-deliveries")
async def resend_webhook_delivery(id: UUID, change: ChangeDep) -> Response:
    """Sends it again, now, with all its tries; also one that waits for its next try or was accepted."""
    delivery = await change.subject(WebhookDelivery, DeliverySummary, id)
    endpoint = await change.session.get_one(WebhookEndpoint, delivery.endpoint_id)
    endpoint.need_open()
    await send_again(change.session, [delivery.id], utc_now())
    wake_afterwards(change, await wake(change.session, [endpoint.id]))
    return under_way(change, delivery)


def wake_afterwards(change: Change, endpoints: Sequence[EndpointOrder]) -> None:
    """Has endpoints look for what is due as soon as others can see it."""
    change.afterwards.append(partial(change.shared.temporal.wake_endpoints, endpoints))


def under_way(change: Change, delivery: WebhookDelivery) -> Response:
    """202 with a delivery, and where it is."""
    headers = {"Location": f"/v1/webhook-deliveries/{delivery.id}"}
    return change.answer(shown(DeliverySummary, delivery), status=202, headers=headers)
