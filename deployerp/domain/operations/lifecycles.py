"""What a lifecycle consists of, as data; the rows of a resource are beside its table.

The 409 rule, the enums of the API, the CHECK constraints, the workflow that carries an action out and the
event that tells of it all come from these rows.
"""

from dataclasses import dataclass
from typing import Any, Literal

FAILED = "failed"
DELETED = "deleted"

OPERATION_STATES = ("pending", "running", "succeeded", "failed", "cancelling", "cancelled")
OPEN_OPERATION_STATES = ("pending", "running", "cancelling")
RETRYABLE_OPERATION_STATES = ("failed", "cancelled")
HOLD_MODES = ("exclusive", "shared")
STEP_STATES = ("running", "succeeded", "failed")
DESIRED_STATES = ("running", "stopped")
HEALTHS = ("healthy", "degraded", "unhealthy", "unknown")


@dataclass(frozen=True)
class Requirement:
    """The states in which a related resource must be. A deletion by force skips it."""

    resource_type: str
    # The column of this resource that holds the id of the other.
    column: str
    states: tuple[str, ...]
    # The operation reads it, and holds it shared until its end.
    reads: bool = False


@dataclass(frozen=True)
class Inclusion:
    """Other resources that an action holds as well, and the action of theirs that it stands for."""

    resource_type: str
    # The column of theirs that holds the id of this resource.
    column: str
    # Those that it can start from move to its transitional state, and to its end when the operation succeeds.
    action: str | None = None


@dataclass(frozen=True)
class Action:
    """One thing that can be done to a resource: the states it starts from, goes through and ends in."""

    name: str
    from_states: tuple[str, ...]
    transitional: str
    end: str
    permission: str
    workflow: str
    event: str
    # What a run that fails or is cancelled leaves: `failed`, or the state in which the resource is then seen,
    # and where it cannot be seen the one before: an instance is not down because its stop did not succeed.
    on_failure: Literal["failed", "before"] = "before"
    requires: Requirement | None = None
    includes: Inclusion | None = None
    # A dataclass of ids and scalars that the order of the action has, never a secret.
    parameters: type[Any] | None = None
    # The value that ordering the action gives to `desired_state`.
    desired_state: Literal["running", "stopped"] | None = None
    # The column that keeps when the action first succeeded.
    time_column: str | None = None


@dataclass(frozen=True)
class Observation:
    """A change of state that is noticed, not ordered, and the event that tells of it."""

    from_states: tuple[str, ...]
    state: str
    event: str


@dataclass(frozen=True)
class Lifecycle:
    """The states of a kind of resource, the actions between them, and what is noticed between actions."""

    resource_type: str
    states: tuple[str, ...]
    actions: dict[str, Action]
    observations: tuple[Observation, ...] = ()

    @property
    def transitional(self) -> frozenset[str]:
        """The states of a resource while an action runs on it."""
        return frozenset(action.transitional for action in self.actions.values())

    @property
    def first(self) -> Action:
        """The action that brings a new resource into being."""
        return next(iter(self.actions.values()))

    def failure_event(self, action: Action) -> str:
        """The event that tells that an action has failed: `instance.deploy_failed`."""
        return f"{self.resource_type}.{action.name}_failed"

    def observed(self, before: str, after: str) -> Observation | None:
        """The row for a change that was noticed; None where no event tells of it."""
        rows = (row for row in self.observations if before in row.from_states and row.state == after)
        return next(rows, None)


def lifecycle(
    resource_type: str, states: tuple[str, ...], *actions: Action, observations: tuple[Observation, ...] = ()
) -> Lifecycle:
    """A lifecycle; the first of the actions creates the resource."""
    return Lifecycle(resource_type, states, {action.name: action for action in actions}, observations)
