"""Answers that are kept, so that a request that is sent again does nothing twice."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from deployerp.database.base import Record, UtcDateTime

KEPT_FOR = timedelta(hours=24)


class IdempotencyRecord(Record, table=True):
    """The answer to a request with an `Idempotency-Key`, written in the transaction of its change."""

    __tablename__ = "idempotency_records"
    __table_args__ = (UniqueConstraint("organization_id", "key"),)

    organization_id: UUID = Field(foreign_key="organizations.id")
    # The caller's id and the key: callers of an organization do not share answers.
    key: str
    # SHA-256 of method, path, query and body.
    fingerprint: str
    status: int
    # Headers and body, without secrets that are shown once; sealed, because it is what a tenant was told.
    sealed_answer: str
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
