"""One durable run of an action on a resource, and its steps: the API's face of a workflow."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from deployerp.database.base import Record, json_field, one_of, time_field, where
from deployerp.domain.operations.lifecycles import (
    HOLD_MODES,
    OPERATION_STATES,
    STEP_STATES,
)
from deployerp.domain.operations.messages import OperationOrder
from deployerp.domain.operations.steps import STEPS


class Operation(Record, table=True):
    __tablename__ = "operations"
    __table_args__ = (
        one_of("state", OPERATION_STATES),
        Index("ix_operations_listing", "organization_id", "created_at", "id"),
        Index("ix_operations_resource", "resource_id", "created_at"),
        Index("ix_operations_state", "state", "created_at"),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    resource_type: str
    resource_id: UUID
    action: str
    # Those of the time when it was ordered: the resource may be renamed while its workflow runs.
    workflow_id: str
    resource_name: str
    resource_slug: str
    force: bool = False
    parameters: dict[str, Any] = json_field(default_factory=dict)
    state: str = "pending"
    error_code: str | None = None
    error_message: str | None = None
    # A user or an API key.
    requested_by: UUID | None = None
    retry_of: UUID | None = Field(default=None, foreign_key="operations.id")
    # The operation whose workflow has ordered this one.
    parent_id: UUID | None = Field(default=None, foreign_key="operations.id", index=True)
    started_at: datetime | None = time_field()
    finished_at: datetime | None = time_field()
    # When it was told that a step fails for longer than a moment.
    stalled_at: datetime | None = time_field()

    @property
    def order(self) -> OperationOrder:
        return OperationOrder(
            operation_id=str(self.id),
            organization_id=str(self.organization_id),
            resource_type=self.resource_type,
            resource_id=str(self.resource_id),
            action=self.action,
            force=self.force,
            parameters=self.parameters,
            workflow_id=self.workflow_id,
            resource_name=self.resource_name,
            resource_slug=self.resource_slug,
        )


class OperationHold(Record, table=True):
    """A resource that an open operation keeps from others; gone in the transaction that ends the operation.

    `exclusive` changes the resource, `shared` reads it.
    """

    __tablename__ = "operation_holds"
    __table_args__ = (
        one_of("mode", HOLD_MODES),
        Index(
            "uq_operation_holds_exclusive_resource_id",
            "resource_id",
            unique=True,
            **where("mode = 'exclusive'"),
        ),
        Index("ix_operation_holds_resource_id", "resource_id"),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    operation_id: UUID = Field(foreign_key="operations.id", index=True)
    resource_type: str
    resource_id: UUID
    mode: str = "exclusive"
    # The resource's, when it was taken.
    status_before: str


class OperationStep(Record, table=True):
    __tablename__ = "operation_steps"
    __table_args__ = (
        one_of("state", STEP_STATES),
        UniqueConstraint("operation_id", "name", "run"),
        Index(
            "ix_operation_steps_running",
            "updated_at",
            **where("state = 'running'"),
        ),
    )

    operation_id: UUID = Field(foreign_key="operations.id")
    position: int
    name: str
    # A step that an operation runs again has a record for each run, counted from 1.
    run: int = 1
    state: str = "running"
    detail: str | None = None
    attempt: int = 1
    started_at: datetime = time_field()
    finished_at: datetime | None = time_field()
    # Of a step that is tried again.
    first_failed_at: datetime | None = time_field()
    next_attempt_at: datetime | None = time_field()

    @property
    def title(self) -> str:
        return STEPS.get(self.name, self.name)
