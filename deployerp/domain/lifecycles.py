"""The lifecycles of resources, as data.

The 409 rule, the enums of the API, the CHECK constraints, the workflow that carries an action out
and the event that tells of it all come from the rows of this module. It imports nothing, so that
workflows can use it inside Temporal's sandbox.
"""

from dataclasses import dataclass
from typing import Literal

ResourceType = Literal["server", "instance"]


@dataclass(frozen=True)
class Action:
    """One thing that can be done to a resource: from where, on which way, to where."""

    name: str
    from_states: tuple[str, ...]
    transitional: str
    end: str
    permission: str
    workflow: str
    event: str


@dataclass(frozen=True)
class Lifecycle:
    """The states of a kind of resource and the actions between them."""

    resource_type: ResourceType
    states: tuple[str, ...]
    actions: dict[str, Action]

    @property
    def first(self) -> Action:
        """The action that brings a new resource into being."""
        return next(iter(self.actions.values()))


def _lifecycle(resource_type: ResourceType, states: tuple[str, ...], *rows: Action) -> Lifecycle:
    return Lifecycle(resource_type, states, {row.name: row for row in rows})


FAILED = "failed"
DELETED = "deleted"

SERVER = _lifecycle(
    "server",
    (
        "pending",
        "provisioning",
        "running",
        "stopping",
        "stopped",
        "starting",
        "restarting",
        "deleting",
        "deleted",
        "failed",
        "unreachable",
    ),
    Action(
        "provision", ("pending",), "provisioning", "running",
        "manage:servers", "ProvisionServer", "server.created",
    ),
    Action(
        "start", ("stopped",), "starting", "running",
        "manage:servers", "StartServer", "server.started",
    ),
    Action(
        "stop", ("running", "unreachable"), "stopping", "stopped",
        "manage:servers", "StopServer", "server.stopped",
    ),
    Action(
        "restart", ("running", "unreachable"), "restarting", "running",
        "manage:servers", "RestartServer", "server.restarted",
    ),
    Action(
        "delete", ("pending", "running", "stopped", "failed", "unreachable"), "deleting", "deleted",
        "delete:servers", "DeleteServer", "server.deleted",
    ),
)  # fmt: skip

INSTANCE = _lifecycle(
    "instance",
    (
        "pending",
        "deploying",
        "running",
        "stopping",
        "stopped",
        "starting",
        "restarting",
        "updating",
        "restoring",
        "deleting",
        "deleted",
        "failed",
    ),
    Action(
        "deploy", ("pending",), "deploying", "running",
        "manage:instances", "DeployInstance", "instance.deployed",
    ),
    Action(
        "start", ("stopped",), "starting", "running",
        "manage:instances", "StartInstance", "instance.started",
    ),
    Action(
        "stop", ("running",), "stopping", "stopped",
        "manage:instances", "StopInstance", "instance.stopped",
    ),
    Action(
        "restart", ("running",), "restarting", "running",
        "manage:instances", "RestartInstance", "instance.restarted",
    ),
    Action(
        "delete", ("pending", "running", "stopped", "failed"), "deleting", "deleted",
        "delete:instances", "DeleteInstance", "instance.deleted",
    ),
)  # fmt: skip

LIFECYCLES: dict[ResourceType, Lifecycle] = {
    lifecycle.resource_type: lifecycle for lifecycle in (SERVER, INSTANCE)
}

OPERATION_STATES = ("pending", "running", "succeeded", "failed", "cancelling", "cancelled")
OPEN_OPERATION_STATES = ("pending", "running", "cancelling")
RETRYABLE_OPERATION_STATES = ("failed", "cancelled")
STEP_STATES = ("running", "succeeded", "failed")
DELIVERY_STATES = ("pending", "succeeded", "failed")


def action_of(resource_type: ResourceType, name: str) -> Action:
    return LIFECYCLES[resource_type].actions[name]


def failure_event(resource_type: ResourceType, action: str) -> str:
    """The event that tells that an action has failed: `instance.deploy_failed`."""
    return f"{resource_type}.{action}_failed"
