"""Webhook deliveries: one event to one endpoint, and each try of it."""

from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import select
from sqlmodel import col

from deployerp.api.contract.changes import ChangeDep, get_owned
from deployerp.api.contract.dependencies import CallerDep, ContextDep
from deployerp.api.contract.envelope import respond_single, serialize
from deployerp.api.contract.errors import documented
from deployerp.api.contract.lists import Text
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route, needs
from deployerp.api.contract.schemas import Envelope, View
from deployerp.api.webhook_queue import DeliverySummary, respond_delivery, wake_afterwards
from deployerp.core.errors import InvalidState, NotFound
from deployerp.core.fields import CreatedAt
from deployerp.database.base import utc_now
from deployerp.database.sessions import tenant_transaction
from deployerp.domain.webhooks.deliveries import DELIVERY_STATES, WebhookAttempt, WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint
from deployerp.domain.webhooks.queue import wake
from deployerp.domain.webhooks.replays import send_again

router = APIRouter(prefix="/v1/webhook-deliveries", tags=["webhook deliveries"], route_class=Route)


class AttemptRead(View):
    number: int = Field(description="Number of the attempt, from 1.", examples=[1])
    status_code: int | None = Field(
        description="HTTP status code of the receiver's response; null if there was no response.",
        examples=[204],
    )
    error: str | None = Field(description="Why the attempt failed; null if it succeeded.", examples=[None])
    duration_ms: int = Field(description="Duration of the attempt, in milliseconds.", examples=[87])
    response_excerpt: str | None = Field(
        description="First characters of the receiver's response; null if it was empty.", examples=[None]
    )
    created_at: CreatedAt


class DeliveryRead(DeliverySummary):
    attempt_log: list[AttemptRead] = Field(description="Attempts of the delivery, oldest first.")


serve(
    router,
    WebhookDelivery,
    DeliverySummary,
    filters={"state": Literal[DELIVERY_STATES], "endpoint_id": UUID, "event_id": UUID, "event_type": Text},
    single_view=False,
)


@router.get(
    "/{id}",
    responses=documented(NotFound),
    response_model=Envelope[DeliveryRead],
    summary="Get a webhook delivery",
)
@needs("read:webhook-deliveries")
async def get_webhook_delivery(id: UUID, request: Request, shared: ContextDep, caller: CallerDep) -> Response:
    """Returns a delivery with all its attempts."""
    async with tenant_transaction(shared.sessions, caller.tenant) as session:
        delivery = await get_owned(session, WebhookDelivery, id, caller.tenant)
        attempts = await session.scalars(
            select(WebhookAttempt)
            .where(col(WebhookAttempt.delivery_id) == id)
            .order_by(col(WebhookAttempt.number))
        )
        log = [serialize(AttemptRead, attempt) for attempt in attempts]
    return respond_single(request, serialize(DeliverySummary, delivery) | {"attemptLog": log})


@router.post(
    "/{id}/resend",
    status_code=202,
    responses=documented(NotFound, InvalidState),
    response_model=Envelope[DeliverySummary],
    summary="Resend a webhook delivery",
)
@needs("manage:webhook-deliveries")
async def resend_webhook_delivery(id: UUID, change: ChangeDep) -> Response:
    """Sends a delivery again at once, also a pending or an accepted one. Its retry schedule starts again."""
    delivery = await change.subject(WebhookDelivery, DeliverySummary, id)
    endpoint = await change.session.get_one(WebhookEndpoint, delivery.endpoint_id)
    endpoint.need_open()
    await send_again(change.session, [delivery.id], utc_now())
    wake_afterwards(change, await wake(change.session, [endpoint.id]))
    return respond_delivery(change, delivery)
