"""What travels between the API, workflows and activities: ids and scalars, never secrets.

It imports no SQLModel, so that workflows can use it inside Temporal's sandbox.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class OperationOrder:
    """One durable run of an action on a resource: the input of its workflow and of every step."""

    operation_id: str
    organization_id: str
    resource_type: str
    resource_id: str
    action: str
    # For operators: what they find the workflow by.
    workflow_id: str = ""
    resource_name: str = ""
    resource_slug: str = ""
    # Delete the record even if the machine or the provider cannot be reached.
    force: bool = False
    # Those of the action, as JSON has them.
    parameters: Mapping[str, Any] = field(default_factory=dict)


def workflow_id(resource_type: str, action: str, slug: str, operation_id: str) -> str:
    """What people recognise a workflow by: `instance-deploy.acme.<operation id>`.

    It consists of `a-z`, `0-9`, dots and hyphens: `/`, `:` and `@` break the links of Temporal's UI.
    """
    return f"{resource_type}-{action}.{slug}.{operation_id}"


Outcome = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class OperationEnd:
    """How an operation ended; `code` and `message` say why it failed, for people.

    `observed` is the status in which the resource was seen after that, None where it could not be seen.
    Without `has_begun` no step was run: all is as it was before.
    """

    order: OperationOrder
    outcome: Outcome
    code: str | None = None
    message: str | None = None
    observed: str | None = None
    has_begun: bool = True


@dataclass(frozen=True)
class EndpointOrder:
    """Everything that waits, or will wait, to be sent to one webhook endpoint."""

    endpoint_id: str
    organization_id: str
    # Whether its last tries have failed: such endpoints have workers of their own.
    failing: bool = False

    @property
    def workflow_id(self) -> str:
        return f"webhooks-{self.endpoint_id}"


_FAILING = "-failing"


def queue_for(webhook_queue: str, *, failing: bool) -> str:
    """The queue of endpoints that fail, or that of the others, from either name.

    Temporal serves a queue in the order in which its tasks came: those of many endpoints that fail, as they
    come together after a restart, must not stand before one that works.
    """
    return webhook_queue.removesuffix(_FAILING) + (_FAILING if failing else "")


@dataclass(frozen=True)
class TurnOrder:
    """Some seconds of sending to an endpoint; `failures` are those in a row before it."""

    endpoint: EndpointOrder
    failures: int = 0


@dataclass(frozen=True)
class TurnResult:
    """What a turn has left: failures in a row, and the seconds until there is something to do.

    `wait` is 0 when there is more to send now, and None when nothing waits. With `paused` the receiver is to
    be left alone for that long, whatever becomes due, unless its endpoint is changed.
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
    ended_steps: int = 0
    woken_endpoints: int = 0
