"""Webhook deliveries: one event to one endpoint, and each try of it."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request
from sqlalchemy import select
from sqlmodel import col

from deployerp.api import changes
from deployerp.api.deps import Caller, SessionDep, require
from deployerp.api.errors import documented
from deployerp.api.pages import PageDep, page_of
from deployerp.api.requests import meta_of
from deployerp.api.schemas import Envelope, ListEnvelope, View, enum_of
from deployerp.domain.errors import NotFound
from deployerp.domain.lifecycles import DELIVERY_STATES
from deployerp.domain.webhook_deliveries import WebhookAttempt, WebhookDelivery

router = APIRouter(prefix="/v1/webhook-deliveries", tags=["webhook deliveries"])


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


@router.get("", responses=documented())
async def list_webhook_deliveries(
    request: Request,
    session: SessionDep,
    page: PageDep,
    caller: Annotated[Caller, require("read:webhook-deliveries")],
) -> ListEnvelope[DeliverySummary]:
    query = select(WebhookDelivery).where(col(WebhookDelivery.organization_id) == caller.organization_id)
    return await page_of(request, session, query, WebhookDelivery, DeliverySummary, page)


@router.get("/{id}", responses=documented(NotFound))
async def get_webhook_delivery(
    id: UUID,
    request: Request,
    session: SessionDep,
    caller: Annotated[Caller, require("read:webhook-deliveries")],
) -> Envelope[DeliveryRead]:
    delivery = await changes.owned(session, WebhookDelivery, id, caller)
    attempts = await session.scalars(
        select(WebhookAttempt)
        .where(col(WebhookAttempt.delivery_id) == id)
        .order_by(col(WebhookAttempt.number))
    )
    told: dict[str, Any] = DeliverySummary.model_validate(delivery).model_dump()
    log = [AttemptRead.model_validate(attempt) for attempt in attempts]
    return Envelope(data=DeliveryRead(**told, attempt_log=log), meta=meta_of(request))
