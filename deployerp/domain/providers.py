"""A connected cloud account, or `docker` / `custom` for machines without one."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index
from sqlmodel import Field

from deployerp.database.base import PRESENT, Record, time_field


class Provider(Record, table=True):
    __tablename__ = "providers"
    __table_args__ = (
        Index(
            "uq_providers_organization_id_name",
            "organization_id",
            "name",
            unique=True,
            **PRESENT,
        ),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    name: str
    kind: str
    sealed_credentials: str
    deleted_at: datetime | None = time_field()
