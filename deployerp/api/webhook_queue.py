"""Deliveries that a request puts in the queue: what is answered, and who is woken for them."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Annotated

from fastapi import Response
from pydantic import Field

from deployerp.api.contract.changes import Change
from deployerp.api.contract.envelope import serialize
from deployerp.api.contract.schemas import View, enum_of
from deployerp.core.fields import CreatedAt, EndpointId, EventId, FinishedAt, Id
from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.webhooks.deliveries import DELIVERY_STATES, WebhookDelivery


class DeliverySummary(View):
    id: Id
    endpoint_id: EndpointId
    event_id: EventId
    event_type: str = Field(description="Type of the event.", examples=["instance.deployed"])
    state: Annotated[str, enum_of(DELIVERY_STATES)] = Field(
        description="State of the delivery.", examples=["pending"]
    )
    attempts: int = Field(description="Number of attempts so far.", examples=[0])
    error: str | None = Field(
        description="Why the last attempt failed; null if it did not fail.", examples=[None]
    )
    next_attempt_at: datetime | None = Field(
        description="Earliest time of the next attempt (RFC 3339, UTC); null if none is scheduled.",
        examples=[None],
    )
    created_at: CreatedAt
    finished_at: FinishedAt


def wake_afterwards(change: Change, endpoints: Sequence[EndpointOrder]) -> None:
    """Has endpoints look for what is due as soon as others can see it."""
    change.afterwards.append(partial(change.shared.temporal.wake_endpoints, endpoints))


def respond_delivery(change: Change, delivery: WebhookDelivery) -> Response:
    """202 with a delivery, and where it is."""
    headers = {"Location": f"/v1/webhook-deliveries/{delivery.id}"}
    return change.answer(serialize(DeliverySummary, delivery), status=202, headers=headers)
