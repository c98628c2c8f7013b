"""Ordering operations: what one needs, which resources it holds, and where it moves them.

Requests order operations, and so do workflows and schedules: nothing here knows of requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, cast
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from deployerp.core.errors import InvalidState, OperationInProgress
from deployerp.database.base import new_id, utc_now
from deployerp.database.statements import put
from deployerp.domain import tables  # noqa: F401  (registers every resource)
from deployerp.domain.events.log import write_event
from deployerp.domain.operations.holds import (
    check_holds,
    hold_of,
    lock_holders,
    lock_included,
    lock_readers,
    lock_required,
    release_holds,
    take_over,
)
from deployerp.domain.operations.lifecycles import DELETED, FAILED, Action
from deployerp.domain.operations.messages import workflow_id
from deployerp.domain.operations.operation import Operation, OperationHold
from deployerp.domain.operations.stateful import Stateful


@dataclass(frozen=True)
class Actor:
    """Who orders an operation: a user, an API key, or the control plane itself, which has no id."""

    id: UUID | None = None


SYSTEM = Actor()


async def order(
    session: AsyncSession,
    actor: Actor,
    resource: Stateful,
    name: str,
    parameters: object = None,
    *,
    force: bool = False,
    retry_of: Operation | None = None,
    parent: Operation | None = None,
) -> Operation:
    """Writes an operation on a resource, and moves what it holds to the transitional states.

    The resource is new or locked. `parameters` is the dataclass that the action declares; a retry has those
    of the operation that it repeats. An operation ordered by another, its `parent`, takes over the parent's
    hold, and its status is not checked: the parent decides where the resource goes. The caller starts the
    workflow after the commit. Raises `OperationInProgress` and `InvalidState`.
    """
    action = resource.lifecycle.actions[name]
    operation = Operation(
        id=(operation_id := new_id()),
        organization_id=resource.organization_id,
        resource_type=resource.resource_type,
        resource_id=resource.id,
        action=name,
        parameters=retry_of.parameters if retry_of else _as_json(action, parameters),
        workflow_id=workflow_id(resource.resource_type, name, resource.workflow_slug, str(operation_id)),
        resource_name=resource.name,
        resource_slug=resource.workflow_slug,
        force=force,
        requested_by=actor.id,
        retry_of=retry_of.id if retry_of else None,
        parent_id=parent.id if parent else None,
    )
    is_new = action is resource.lifecycle.first and retry_of is None
    if parent is not None and not is_new:
        await put(session, operation)
        await take_over(session, parent, operation)
        resource.move(action.transitional)
        return operation
    included = [] if is_new else await lock_included(session, resource, action)
    required = None if force else await lock_required(session, resource, action)
    read = [required] if required and action.requires and action.requires.reads else []
    exclusive = [] if is_new else [resource, *included]
    await check_holds(session, resource, exclusive, read, parent)
    if required:
        _check_requirement(action, required)
    if not is_new:
        _check_status(resource, action, is_retry=retry_of is not None)
    holds = [hold_of(operation, each) for each in (resource, *included)]
    holds += [hold_of(operation, each, "shared") for each in read]
    await _write(session, operation, holds)
    if not is_new:
        # A new resource is pending until its workflow claims the operation.
        _move(resource, action, included)
    return operation


def parameters_of(order: Any, kind: type[Any]) -> Any:
    """The parameters of an operation or its order, as the dataclass that its action declares."""
    return TypeAdapter(kind).validate_python(dict(order.parameters))


async def supersede(session: AsyncSession, resource: Stateful) -> list[Operation]:
    """Closes the operations that a deletion by force replaces, and returns them.

    These are the open operations on the locked resource and on what its deletion includes, and those that
    only read them. A deletion by force of the resource itself stays open: a second request for it must not
    start it again. Another's operation that changes the resource, such as its server's, stays open too.
    """
    included = await lock_included(session, resource, resource.lifecycle.actions["delete"])
    subjects = {each.id: each for each in (resource, *included)}
    readers = await lock_readers(session, list(subjects))
    closed = []
    for operation in await lock_holders(session, list(subjects)):
        own = (subjects | readers).get(operation.resource_id)
        if own is None or (operation.force and own is resource):
            continue
        for hold in await release_holds(session, operation):
            held = subjects.get(hold.resource_id)
            if held is not None and hold.mode == "exclusive" and held.status in held.lifecycle.transitional:
                held.move(hold.status_before, held.status_message)
        operation.state, operation.finished_at = "cancelled", utc_now()
        operation.error_code = "superseded"
        operation.error_message = f"The {resource.resource_type} was deleted by force."
        if own.id in subjects:
            own.move(FAILED, own.status_message)
        else:
            own.move(FAILED, operation.error_message)
            # The sweep wakes the endpoints: nobody waits for this event.
            action = own.lifecycle.actions[operation.action]
            await write_event(session, own.lifecycle.failure_event(action), own)
        closed.append(operation)
    await session.flush()
    return closed


def _as_json(action: Action, parameters: object) -> dict[str, Any]:
    if action.parameters is None:
        return {}
    if not is_dataclass(parameters) or not isinstance(parameters, action.parameters):
        raise TypeError(f"{action.name} takes {action.parameters.__name__}")
    return cast("dict[str, Any]", TypeAdapter(action.parameters).dump_python(parameters, mode="json"))


def _check_requirement(action: Action, required: Stateful) -> None:
    states = action.requires.states if action.requires else ()
    if required.status not in states:
        way_out = ", or add force=true" if action.end == DELETED else ""
        raise InvalidState(
            f"The {required.resource_type} {required.name} is {required.status}, and `{action.name}` needs it"
            f" to be {' or '.join(states)}: start it first{way_out}.",
            details={"status": required.status},
        )


def _check_status(resource: Stateful, action: Action, *, is_retry: bool) -> None:
    if resource.status == FAILED and action.end != DELETED and not is_retry and not resource.has_run:
        raise InvalidState(
            f"The {resource.resource_type} has never run: retry its last operation, or delete it.",
            details={"status": resource.status},
        )
    allowed = action.from_states
    if is_retry:
        # What a failure leaves is not always `failed`: what is seen afterwards may be what was before.
        allowed = (FAILED,) if action.on_failure == "failed" else (FAILED, *allowed)
    if resource.status not in allowed:
        name = "retry" if is_retry else action.name
        raise InvalidState(
            f"Cannot {name}: the {resource.resource_type} is {resource.status}, not {' or '.join(allowed)}.",
            details={"status": resource.status, "allowed": list(allowed)},
        )


async def _write(session: AsyncSession, operation: Operation, holds: Sequence[OperationHold]) -> None:
    try:
        for record in (operation, *holds):
            await put(session, record)
    except IntegrityError:
        # The index is the last word on one operation at a time.
        raise OperationInProgress("Another operation has just begun: wait for it or cancel it.") from None


def _move(resource: Stateful, action: Action, included: Sequence[Stateful]) -> None:
    resource.move(action.transitional)
    if action.desired_state:
        resource.desired_state = action.desired_state
    if action.includes is None or action.includes.action is None:
        return
    for each in included:
        theirs = each.lifecycle.actions[action.includes.action]
        if each.status in theirs.from_states:
            each.move(theirs.transitional, each.status_message)
