"""The catalogue of event types: when each is written, and what it tells of its resource.

What is told is read off the resource by the very model that the contract shows, so the two cannot differ.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic.alias_generators import to_camel, to_pascal

from deployerp.core.fields import Pattern
from deployerp.domain.instances import EnvironmentType
from deployerp.domain.operations.lifecycles import FAILED, INSTANCE, LIFECYCLES, SERVER, failure_event

PINGED = "webhook_endpoint.pinged"
"""The one event that goes to a single endpoint, and to it alone."""
STALLED = "operation.stalled"
EventResource = Literal["server", "instance", "operation", "backup", "webhook_endpoint"]
"""What events are about: the first part of their type."""

_BACKUP_STATES = ("pending", "running", "completed", "failed", "deleting", "deleted")


class Facts(BaseModel):
    """What an event tells of its resource, spelled as in the API; secrets have no place here."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)

    id: UUID

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json", by_alias=True)


class ServerFacts(Facts):
    name: str
    status: str = Field(json_schema_extra={"enum": [*SERVER.states]})
    status_message: str | None = Field(description="What went wrong, where something did.")
    address: str | None = Field(description="Where it answers, once it does.")


class InstanceFacts(Facts):
    name: str
    slug: str
    status: str = Field(json_schema_extra={"enum": [*INSTANCE.states]})
    status_message: str | None = Field(description="What went wrong, where something did.")
    server_id: UUID
    odoo_version: str
    environment_type: EnvironmentType
    url: str | None = Field(description="Where it answers, once it does.")


class OperationFacts(Facts):
    resource_type: str = Field(json_schema_extra={"enum": [*LIFECYCLES]})
    resource_id: UUID
    action: str
    error_code: str | None = Field(description="What kept its last attempt from succeeding.")
    error_message: str | None = Field(description="The same in words, with what to do about it.")


class BackupFacts(Facts):
    instance_id: UUID
    status: str = Field(json_schema_extra={"enum": [*_BACKUP_STATES]})
    status_message: str | None = Field(description="What went wrong, where something did.")
    size_bytes: int | None = Field(description="What it takes where it is stored, once it is there.")


class EndpointFacts(Facts):
    """Not its URL, which may be a secret."""

    description: str | None
    enabled: bool
    disabled_reason: str | None = Field(description="Why we have disabled it, where we have.")
    failing_since: datetime | None = Field(description="Since when no try has been accepted.")


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
        fields: Any = {"type": Literal[self.name], "timestamp": datetime, "data": self.facts}
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
        return {"type": self.name, "timestamp": "2026-11-21T12:00:00Z", "data": self.sample.told()}

    def told_of(self, resource: object) -> dict[str, Any]:
        """What an event of this type tells of a record."""
        return self.facts.model_validate(resource).told()


def _id(number: int) -> UUID:
    return UUID(f"01932a7c-8f4e-7c3a-9b2d-{number:012x}")


_SERVER = ServerFacts(id=_id(1), name="one", status="running", status_message=None, address="203.0.113.7")
_INSTANCE = InstanceFacts(
    id=_id(2),
    name="Acme",
    slug="acme",
    status="running",
    status_message=None,
    server_id=_SERVER.id,
    odoo_version="19.0",
    environment_type="production",
    url="https://acme.odoo.example.com",
)
_BACKUP = BackupFacts(
    id=_id(3), instance_id=_INSTANCE.id, status="completed", status_message=None, size_bytes=161_000_000
)
_ENDPOINT = EndpointFacts(
    id=_id(4), description="Tells our chat", enabled=True, disabled_reason=None, failing_since=None
)
_DISABLED = {
    "enabled": False,
    "disabled_reason": "Nothing was accepted for 5 days.",
    "failing_since": datetime(2026, 11, 16, 12, tzinfo=UTC),
}
_STALLED = OperationFacts(
    id=_id(5),
    resource_type="instance",
    resource_id=_INSTANCE.id,
    action="restart",
    error_code="host_unreachable",
    error_message="The server does not answer over SSH.",
)
_ANNOUNCED = "Announced: sent as soon as there are backups."
_OF_LIFECYCLES = {"server": _SERVER, "instance": _INSTANCE}


def _failed(sample: Facts, message: str) -> Facts:
    return sample.model_copy(update={"status": FAILED, "status_message": message})


def _lifecycle_rows() -> Iterator[EventType]:
    for resource_type, lifecycle in LIFECYCLES.items():
        sample = _OF_LIFECYCLES[resource_type]
        for action in lifecycle.actions.values():
            yield EventType(
                action.event,
                f"`{action.name}` of the {resource_type} has succeeded: it is {action.end}.",
                sample.model_copy(update={"status": action.end}),
            )
            yield EventType(
                failure_event(resource_type, action.name),
                f"`{action.name}` of the {resource_type} has failed or was cancelled:"
                " `statusMessage` says why.",
                _failed(sample, "The machine does not answer."),
            )


_ROWS = (
    *_lifecycle_rows(),
    EventType(
        "backup.completed",
        f"The backup is whole: it was read back and compared. {_ANNOUNCED}",
        _BACKUP,
        announced=True,
    ),
    EventType(
        "backup.failed",
        f"The backup could not be made: `statusMessage` says why. {_ANNOUNCED}",
        _failed(_BACKUP, "The object storage does not answer.").model_copy(update={"size_bytes": None}),
        announced=True,
    ),
    EventType(
        STALLED,
        "A step has failed for a minute for a reason that may pass, and is tried again: the operation shows"
        " why, and can be cancelled.",
        _STALLED,
    ),
    EventType(PINGED, "Somebody has asked for a test of the endpoint.", _ENDPOINT),
    EventType(
        "webhook_endpoint.disabled",
        "Nothing is sent to the endpoint any more: it has failed for days, or answered 410.",
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
