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
    # What a run that fails or is cancelled leaves: `failed`, or what is seen of the resource then, and where
    # it cannot be seen what it was before: an instance is not down because its stop did not succeed.
    on_failure: Literal["failed", "before"] = "before"
    # Whether an action on a server holds the server's instances too.
    includes_instances: bool = False
    # The instance action that it stands for: running instances move to its transitional state, then its end.
    instances_action: str | None = None
    # What the status of the instance's server must be; empty where it does not matter. A deletion by force
    # does not ask.
    server_states: tuple[str, ...] = ()
    # The state that this action makes the desired one of its instance.
    desired_state: Literal["running", "stopped"] | None = None


@dataclass(frozen=True)
class Lifecycle:
    """The states of a kind of resource and the actions between them."""

    resource_type: ResourceType
    states: tuple[str, ...]
    actions: dict[str, Action]

    @property
    def transitional(self) -> frozenset[str]:
        """The states of a resource while an action runs on it."""
        return frozenset(action.transitional for action in self.actions.values())

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
        "manage:servers", "ProvisionServer", "server.created", "failed",
    ),
    Action(
        "start", ("stopped",), "starting", "running",
        "manage:servers", "StartServer", "server.started", includes_instances=True,
    ),
    Action(
        "stop", ("running", "unreachable"), "stopping", "stopped",
        "manage:servers", "StopServer", "server.stopped",
        includes_instances=True, instances_action="stop",
    ),
    Action(
        "restart", ("running", "unreachable", "failed"), "restarting", "running",
        "manage:servers", "RestartServer", "server.restarted",
        includes_instances=True, instances_action="stop",
    ),
    Action(
        "delete", ("pending", "running", "stopped", "failed", "unreachable"), "deleting", "deleted",
        "delete:servers", "DeleteServer", "server.deleted",
        includes_instances=True, instances_action="delete",
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
        "manage:instances", "DeployInstance", "instance.deployed", "failed",
        server_states=("running",), desired_state="running",
    ),
    Action(
        "start", ("stopped",), "starting", "running",
        "manage:instances", "StartInstance", "instance.started",
        server_states=("running",), desired_state="running",
    ),
    Action(
        "stop", ("running",), "stopping", "stopped",
        "manage:instances", "StopInstance", "instance.stopped",
        server_states=("running",), desired_state="stopped",
    ),
    Action(
        "restart", ("running", "failed"), "restarting", "running",
        "manage:instances", "RestartInstance", "instance.restarted",
        server_states=("running",), desired_state="running",
    ),
    Action(
        "delete", ("pending", "running", "stopped", "failed"), "deleting", "deleted",
        "delete:instances", "DeleteInstance", "instance.deleted",
        server_states=("running", "unreachable", "failed"),
    ),
)  # fmt: skip

LIFECYCLES: dict[ResourceType, Lifecycle] = {
    lifecycle.resource_type: lifecycle for lifecycle in (SERVER, INSTANCE)
}

OPERATION_STATES = ("pending", "running", "succeeded", "failed", "cancelling", "cancelled")
OPEN_OPERATION_STATES = ("pending", "running", "cancelling")
RETRYABLE_OPERATION_STATES = ("failed", "cancelled")
HOLD_MODES = ("exclusive", "shared")
DESIRED_STATES = ("running", "stopped")
STEP_STATES = ("running", "succeeded", "failed")
DELIVERY_STATES = ("pending", "succeeded", "failed")


def action_of(resource_type: ResourceType, name: str) -> Action:
    return LIFECYCLES[resource_type].actions[name]


def failure_event(resource_type: ResourceType, action: str) -> str:
    """The event that tells that an action has failed: `instance.deploy_failed`."""
    return f"{resource_type}.{action}_failed"
