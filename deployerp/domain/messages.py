"""What travels between the API, workflows and activities: ids and scalars, never secrets.

It imports no SQLModel, so that workflows can use it inside Temporal's sandbox.
"""

from dataclasses import dataclass
from typing import Literal

from deployerp.domain.lifecycles import ResourceType


@dataclass(frozen=True)
class OperationOrder:
    """One durable run of an action on a resource: the input of its workflow and of every step."""

    operation_id: str
    organization_id: str
    resource_type: ResourceType
    resource_id: str
    action: str
    # Delete the record even if the machine or the provider cannot be reached.
    force: bool = False

    @property
    def workflow_id(self) -> str:
        return f"op-{self.operation_id}"


Outcome = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class OperationEnd:
    """How an operation ended; `code` and `message` say why it failed, for people."""

    order: OperationOrder
    outcome: Outcome
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class EndpointOrder:
    """Everything that waits, or will wait, to be sent to one webhook endpoint."""

    endpoint_id: str
    organization_id: str

    @property
    def workflow_id(self) -> str:
        return f"webhooks-{self.endpoint_id}"


@dataclass(frozen=True)
class TurnOrder:
    """Some seconds of sending to an endpoint; `failures` are those in a row before it."""

    endpoint: EndpointOrder
    failures: int = 0


@dataclass(frozen=True)
class TurnResult:
    """What a turn has left: failures in a row, and the seconds until there is something to do.

    `wait` is 0 when there is more to send now, and None when nothing waits. With `paused` the receiver is to
    be left alone for that long, whatever becomes due.
    """

    failures: int
    wait: float | None
    paused: bool = False


@dataclass(frozen=True)
class SweepReport:
    """What a sweep has put right."""

    started_operations: int = 0
    cancelled_operations: int = 0
    closed_operations: int = 0
    woken_endpoints: int = 0
