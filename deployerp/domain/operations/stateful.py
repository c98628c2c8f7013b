"""Resources with a lifecycle. A table class registers itself; nothing else lists the types of resources."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import CheckConstraint
from sqlmodel import Field

from deployerp.core.fields import slug_of
from deployerp.database.base import Record, UtcDateTime, one_of, time_field, utc_now
from deployerp.domain.events.facts import Facts
from deployerp.domain.operations.lifecycles import HEALTHS, Action, Lifecycle

STATEFUL: dict[str, type["Stateful"]] = {}
"""The table of each type of resource; `domain.tables` imports them all."""


class Stateful(Record):
    """What every table of a resource with a lifecycle has.

    A table declares its `lifecycle`, and in `sample` an example of what its events tell.
    """

    lifecycle: ClassVar[Lifecycle]
    sample: ClassVar[Facts]

    organization_id: UUID = Field(foreign_key="organizations.id")
    name: str
    status: str = "pending"
    status_message: str | None = None
    # When the status last changed: what was observed before that is out of date.
    state_changed_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    # Observed, beside the status, which is ordered.
    health: str = "unknown"
    deleted_at: datetime | None = time_field()

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        STATEFUL[cls.lifecycle.resource_type] = cls

    @property
    def resource_type(self) -> str:
        return self.lifecycle.resource_type

    @property
    def has_run(self) -> bool:
        """Whether it once came into being: from `failed` no other can be restarted."""
        return True

    @property
    def workflow_slug(self) -> str:
        """Its name as workflow ids can have it; two resources may share it."""
        return slug_of(self.name)

    def move(self, status: str, message: str | None = None) -> None:
        """Sets the status and what explains it. Only records and orders of operations do."""
        if status != self.status:
            self.state_changed_at = utc_now()
        self.status, self.status_message = status, message


def state_constraints(lifecycle: Lifecycle) -> tuple[CheckConstraint, ...]:
    """The CHECK constraints of a table with this lifecycle."""
    return one_of("status", lifecycle.states), one_of("health", HEALTHS)


def action_of(resource_type: str, name: str) -> Action:
    return STATEFUL[resource_type].lifecycle.actions[name]
