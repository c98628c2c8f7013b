"""Immutable facts, ordered per organization."""

from typing import Any
from uuid import UUID

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from deployerp.database.base import Record, json_field


class Event(Record, table=True):
    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("organization_id", "sequence"),)

    organization_id: UUID = Field(foreign_key="organizations.id")
    sequence: int
    type: str
    resource_type: str
    resource_id: UUID = Field(index=True)
    data: dict[str, Any] = json_field()
