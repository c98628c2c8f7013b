"""One durable run of an action on a resource, and its steps: the API's face of a workflow."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field

from deployerp.domain.base import Record, one_of, time_field
from deployerp.domain.lifecycles import (
    OPEN_OPERATION_STATES,
    OPERATION_STATES,
    STEP_STATES,
    ResourceType,
    action_of,
)
from deployerp.domain.messages import OperationOrder
from deployerp.domain.steps import STEPS

_OPEN = "state IN ({})".format(", ".join(f"'{state}'" for state in OPEN_OPERATION_STATES))
# The name by which the second of two racing requests is recognised.
ONE_OPEN_OPERATION = "uq_operations_open_resource_id"


class Operation(Record, table=True):
    __tablename__ = "operations"
    __table_args__ = (
        one_of("state", OPERATION_STATES),
        Index(
            ONE_OPEN_OPERATION,
            "resource_id",
            unique=True,
            sqlite_where=text(_OPEN),
            postgresql_where=text(_OPEN),
        ),
        Index("ix_operations_listing", "organization_id", "created_at", "id"),
        Index("ix_operations_resource", "resource_id", "created_at"),
        Index("ix_operations_state", "state", "created_at"),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    resource_type: str
    resource_id: UUID
    action: str
    force: bool = False
    state: str = "pending"
    error_code: str | None = None
    error_message: str | None = None
    # A user or an API key.
    requested_by: UUID | None = None
    retry_of: UUID | None = Field(default=None, foreign_key="operations.id")
    started_at: datetime | None = time_field()
    finished_at: datetime | None = time_field()

    @property
    def workflow(self) -> str:
        return action_of(self.typed_resource, self.action).workflow

    @property
    def typed_resource(self) -> ResourceType:
        return self.resource_type  # type: ignore[return-value]

    @property
    def order(self) -> OperationOrder:
        return OperationOrder(
            operation_id=str(self.id),
            organization_id=str(self.organization_id),
            resource_type=self.typed_resource,
            resource_id=str(self.resource_id),
            action=self.action,
            force=self.force,
        )


class OperationStep(Record, table=True):
    __tablename__ = "operation_steps"
    __table_args__ = (one_of("state", STEP_STATES), UniqueConstraint("operation_id", "name"))

    operation_id: UUID = Field(foreign_key="operations.id")
    position: int
    name: str
    state: str = "running"
    detail: str | None = None
    attempt: int = 1
    started_at: datetime = time_field()
    finished_at: datetime | None = time_field()

    @property
    def title(self) -> str:
        return STEPS.get(self.name, self.name)
