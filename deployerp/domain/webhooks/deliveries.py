"""One event to one endpoint, and each try of it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field

from deployerp.database.base import Record, one_of, time_field, utc_now

_PENDING: dict[str, Any] = {
    "sqlite_where": text("state = 'pending'"),
    "postgresql_where": text("state = 'pending'"),
}


DELIVERY_STATES = ("pending", "succeeded", "failed")


class WebhookDelivery(Record, table=True):
    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        one_of("state", DELIVERY_STATES),
        UniqueConstraint("endpoint_id", "event_id"),
        # The queue of each endpoint.
        Index("ix_webhook_deliveries_due", "endpoint_id", "next_attempt_at", "id", **_PENDING),
        Index("ix_webhook_deliveries_listing", "organization_id", "created_at", "id"),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    endpoint_id: UUID = Field(foreign_key="webhook_endpoints.id")
    event_id: UUID = Field(foreign_key="events.id", index=True)
    event_type: str
    state: str = "pending"
    # All tries ever, and how many of them came before it was last sent again: the schedule begins anew.
    attempts: int = 0
    attempts_before: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    # Of a pending one: not before then.
    next_attempt_at: datetime | None = time_field()
    # What was wrong with the last try, in words.
    error: str | None = None
    finished_at: datetime | None = time_field()

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"next_attempt_at": utc_now()} | given)


class WebhookAttempt(Record, table=True):
    __tablename__ = "webhook_attempts"
    __table_args__ = (UniqueConstraint("delivery_id", "number"),)

    delivery_id: UUID = Field(foreign_key="webhook_deliveries.id")
    number: int
    status_code: int | None = None
    error: str | None = None
    duration_ms: int = 0
    # The first characters of the answer, for people who look for the cause.
    response_excerpt: str | None = None
