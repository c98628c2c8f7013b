"""The catalogue of event types: when each is written, and what it tells of its resource.

What is told is read off the resource by the very model that the contract shows, so the two cannot differ.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model
from pydantic.alias_generators import to_pascal

from deployerp.core.fields import (
    EXAMPLE_TIME,
    ActionName,
    ErrorCode,
    ErrorMessage,
    InstanceId,
    Pattern,
    ResourceId,
    StatusMessage,
)
from deployerp.domain import tables
from deployerp.domain.events.facts import Facts, sample_id
from deployerp.domain.operations.lifecycles import FAILED
from deployerp.domain.operations.stateful import STATEFUL, Stateful

PINGED = "webhook_endpoint.pinged"
"""The one event that goes to a single endpoint, and to it alone."""
STALLED = "operation.stalled"
EventResource = Literal["server", "instance", "operation", "backup", "webhook_endpoint"]
"""What events are about: the first part of their type."""

_BACKUP_STATES = ("pending", "running", "completed", "failed", "deleting", "deleted")


EndpointDescription = Annotated[
    str | None,
    Field(description="Note of the owner about the endpoint, for people.", examples=["Tells our chat"]),
]
EndpointEnabled = Annotated[
    bool, Field(description="Whether events are sent to the endpoint.", examples=[True])
]
DisabledReason = Annotated[
    str | None,
    Field(
        description="Why deployERP disabled the endpoint; null if deployERP did not disable it.",
        examples=[None],
    ),
]
FailingSince = Annotated[
    datetime | None,
    Field(
        description="Time of the first failed attempt since the last accepted one (RFC 3339, UTC);"
        " null if the last attempt was accepted.",
        examples=[None],
    ),
]


class OperationFacts(Facts):
    resource_type: str = Field(
        description="Type of the resource.",
        examples=["instance"],
        json_schema_extra={"enum": [*tables.lifecycles()]},
    )
    resource_id: ResourceId
    action: ActionName
    error_code: ErrorCode
    error_message: ErrorMessage


class BackupFacts(Facts):
    instance_id: InstanceId
    status: str = Field(
        description="Lifecycle status.", examples=["completed"], json_schema_extra={"enum": [*_BACKUP_STATES]}
    )
    status_message: StatusMessage
    size_bytes: int | None = Field(
        description="Size in the backup destination, in bytes; null until the backup is complete.",
        examples=[161_000_000],
    )


class EndpointFacts(Facts):
    """A webhook endpoint, without its URL, which may contain a secret."""

    description: EndpointDescription
    enabled: EndpointEnabled
    disabled_reason: DisabledReason
    failing_since: FailingSince


_Timestamp = Annotated[
    datetime, Field(description="Time of the event (RFC 3339, UTC).", examples=[EXAMPLE_TIME])
]


@dataclass(frozen=True)
class EventType:
    """A row of the catalogue; `sample` is what one of them tells."""

    name: str
    when: str
    sample: Facts
    # What it tells of comes with a later release; it can be asked for by now.
    announced: bool = False

    @property
    def facts(self) -> type[Facts]:
        return type(self.sample)

    @cached_property
    def message(self) -> type[BaseModel]:
        """What a receiver of webhooks gets."""
        name = to_pascal(f"{self.name.replace('.', '_')}_event")
        fields: Any = {
            "type": (Literal[self.name], Field(description="Event type.", examples=[self.name])),
            "timestamp": _Timestamp,
            "data": (self.facts, Field(description="The resource after the event.")),
        }
        return create_model(name, **fields)

    @property
    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of the message, in one piece."""
        schema = self.message.model_json_schema(mode="serialization")
        (schema["properties"]["data"],) = schema.pop("$defs").values()
        return schema

    @property
    def example(self) -> dict[str, Any]:
        """A message."""
        return {"type": self.name, "timestamp": EXAMPLE_TIME, "data": self.sample.serialize()}

    def describe(self, resource: object) -> dict[str, Any]:
        """What an event of this type tells of a record."""
        return self.facts.model_validate(resource).serialize()


_BACKUP = BackupFacts(
    id=sample_id(3), instance_id=sample_id(2), status="completed", status_message=None, size_bytes=161_000_000
)
_ENDPOINT = EndpointFacts(
    id=sample_id(4), description="Tells our chat", enabled=True, disabled_reason=None, failing_since=None
)
_DISABLED = {
    "enabled": False,
    "disabled_reason": "Nothing was accepted for 5 days.",
    "failing_since": datetime(2026, 11, 16, 12, tzinfo=UTC),
}
_STALLED = OperationFacts(
    id=sample_id(5),
    resource_type="instance",
    resource_id=sample_id(2),
    action="restart",
    error_code="host_unreachable",
    error_message="The server does not answer over SSH.",
)
_ANNOUNCED = "Announced: sent by a later release."


def _failure_sample(sample: Facts, message: str) -> Facts:
    return sample.model_copy(update={"status": FAILED, "status_message": message})


def lifecycle_event_types(table: type[Stateful]) -> Iterator[EventType]:
    """The rows of a resource: two for each action, told by the samples of its table."""
    resource_type, sample = table.lifecycle.resource_type, table.sample
    for action in table.lifecycle.actions.values():
        yield EventType(
            action.event,
            f"`{action.name}` of the {resource_type} succeeded; its status is `{action.end}`.",
            sample.model_copy(update={"status": action.end}),
        )
        yield EventType(
            table.lifecycle.failure_event(action),
            f"`{action.name}` of the {resource_type} failed or was cancelled; `statusMessage` says why.",
            _failure_sample(sample, "The machine does not answer."),
        )


_ROWS = (
    *(row for table in STATEFUL.values() for row in lifecycle_event_types(table)),
    EventType(
        "backup.completed",
        f"The backup is complete and verified. {_ANNOUNCED}",
        _BACKUP,
        announced=True,
    ),
    EventType(
        "backup.failed",
        f"The backup failed; `statusMessage` says why. {_ANNOUNCED}",
        _failure_sample(_BACKUP, "The object storage does not answer.").model_copy(
            update={"size_bytes": None}
        ),
        announced=True,
    ),
    EventType(
        STALLED,
        "A step has failed for a minute and is retried; the operation shows why, and can be cancelled.",
        _STALLED,
    ),
    EventType(PINGED, "A test of the endpoint was requested.", _ENDPOINT),
    EventType(
        "webhook_endpoint.disabled",
        "deployERP disabled the endpoint, because it failed for days or returned 410.",
        _ENDPOINT.model_copy(update=_DISABLED),
    ),
)
EVENT_TYPES: Mapping[str, EventType] = {row.name: row for row in sorted(_ROWS, key=lambda row: row.name)}
"""Every event type by its name, sorted."""
SAMPLE = EVENT_TYPES["instance.stop_failed"]
"""The one that examples show."""


def known_pattern(pattern: str) -> str:
    """Raises `ValueError` for a pattern that no event type can fit."""
    if not any(fnmatchcase(name, pattern) for name in EVENT_TYPES):
        raise ValueError(
            f"{pattern} matches no event type: GET /v1/event-types lists them, e.g. `instance.*`"
        )
    return pattern


EventPattern = Annotated[
    str,
    Field(max_length=100),
    Pattern(r"^[a-z_.*]+$", "must be an event type, in which * stands for any part, such as instance.*"),
    AfterValidator(known_pattern),
]
"""The name of an event type, in which `*` stands for any part."""
