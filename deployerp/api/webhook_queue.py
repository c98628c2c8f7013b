"""Deliveries that a request puts in the queue: what is answered, and who is woken for them."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import Response
from pydantic import Field

from deployerp.api.contract.changes import Change
from deployerp.api.contract.envelope import serialize
from deployerp.api.contract.schemas import View, enum_of
from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.webhooks.deliveries import DELIVERY_STATES, WebhookDelivery


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


def wake_afterwards(change: Change, endpoints: Sequence[EndpointOrder]) -> None:
    """Has endpoints look for what is due as soon as others can see it."""
    change.afterwards.append(partial(change.shared.temporal.wake_endpoints, endpoints))


def respond_delivery(change: Change, delivery: WebhookDelivery) -> Response:
    """202 with a delivery, and where it is."""
    headers = {"Location": f"/v1/webhook-deliveries/{delivery.id}"}
    return change.answer(serialize(DeliverySummary, delivery), status=202, headers=headers)
