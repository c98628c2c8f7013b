"""Webhook deliveries: one event to one endpoint, and each try of it."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlmodel import col

from deployerp.api.answers import shown, single
from deployerp.api.changes import missing
from deployerp.api.deps import CallerDep, ContextDep
from deployerp.api.errors import documented
from deployerp.api.lists import Text
from deployerp.api.resources import serve
from deployerp.api.routes import Route, needs
from deployerp.api.schemas import Envelope, View, enum_of
from deployerp.domain.database import tenant_transaction
from deployerp.domain.errors import NotFound
from deployerp.domain.lifecycles import DELIVERY_STATES
from deployerp.domain.webhook_deliveries import WebhookAttempt, WebhookDelivery

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
        delivery = await session.get(WebhookDelivery, id)
        if delivery is None or delivery.organization_id != caller.organization_id:
            raise missing("WebhookDelivery", id)
        attempts = await session.scalars(
            select(WebhookAttempt)
            .where(col(WebhookAttempt.delivery_id) == id)
            .order_by(col(WebhookAttempt.number))
        )
        log = [shown(AttemptRead, attempt) for attempt in attempts]
    return single(request, shown(DeliverySummary, delivery) | {"attemptLog": log})
