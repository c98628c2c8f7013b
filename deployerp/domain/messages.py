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
class DeliveryOrder:
    """One event to one webhook endpoint."""

    delivery_id: str
    organization_id: str
    endpoint_id: str
    event_type: str

    @property
    def workflow_id(self) -> str:
        return f"delivery-{self.delivery_id}"


@dataclass(frozen=True)
class AttemptOrder:
    """One try of a delivery; `number` starts at 1, `last` says that no other follows."""

    delivery: DeliveryOrder
    number: int
    last: bool


@dataclass(frozen=True)
class AttemptResult:
    """What one try came to; `retry_after` is in seconds, as the receiver asked for."""

    done: bool
    retry_after: float | None = None


@dataclass(frozen=True)
class SweepReport:
    """What a sweep has put right."""

    started_operations: int = 0
    cancelled_operations: int = 0
    closed_operations: int = 0
    started_deliveries: int = 0
    closed_deliveries: int = 0
