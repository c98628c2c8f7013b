"""One event to one endpoint, and each try of it."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from deployerp.domain.base import Record, one_of, time_field
from deployerp.domain.lifecycles import DELIVERY_STATES
from deployerp.domain.messages import DeliveryOrder


class WebhookDelivery(Record, table=True):
    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        one_of("state", DELIVERY_STATES),
        UniqueConstraint("endpoint_id", "event_id"),
        Index("ix_webhook_deliveries_state", "state", "created_at"),
        Index("ix_webhook_deliveries_listing", "organization_id", "created_at", "id"),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    endpoint_id: UUID = Field(foreign_key="webhook_endpoints.id")
    event_id: UUID = Field(foreign_key="events.id", index=True)
    event_type: str
    state: str = "pending"
    attempts: int = 0
    finished_at: datetime | None = time_field()

    @property
    def order(self) -> DeliveryOrder:
        return DeliveryOrder(
            delivery_id=str(self.id),
            organization_id=str(self.organization_id),
            endpoint_id=str(self.endpoint_id),
            event_type=self.event_type,
        )


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
