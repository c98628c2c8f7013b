"""The only writer of state: claims, steps, ends, and the facts of resources, each in one transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, TypeVarTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, and_, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from temporalio import activity

from deployerp.activities.steps.observing import Sighting, observe
from deployerp.activities.steps.settling import lock_included, settle
from deployerp.core.errors import NotFound, OperationClosed
from deployerp.database.base import Record, utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.log import write_event
from deployerp.domain.events.types import STALLED
from deployerp.domain.installations import installation_id
from deployerp.domain.operations.lifecycles import OPEN_OPERATION_STATES
from deployerp.domain.operations.messages import OperationEnd, OperationOrder
from deployerp.domain.operations.operation import Operation, OperationStep
from deployerp.domain.operations.ordering import Actor
from deployerp.domain.operations.ordering import order as order_operation
from deployerp.domain.operations.retries import STALLED_AFTER
from deployerp.domain.operations.stateful import STATEFUL, Stateful, action_of
from deployerp.domain.operations.steps import StepRun
from deployerp.drivers.temporal import Temporal


@dataclass(frozen=True)
class StepFailure:
    """Why an attempt of a step failed; `pause` is the time to the next, None where there is none."""

    code: str
    message: str
    pause: timedelta | None = None


@dataclass(frozen=True)
class ChildProgress:
    """The operations that an operation has ordered.

    `ordered` are new, `failed` are the names of the resources whose operation did not succeed; `ended` of
    `total` are over.
    """

    ordered: list[OperationOrder]
    failed: list[str]
    ended: int
    total: int


Model = TypeVar("Model", bound=Record)
Columns = TypeVarTuple("Columns")
Included = TypeVar("Included", bound=Stateful)
# A running step renews its row every few seconds. One that has not for this long is over: its worker is dead,
# and the longest call to a cloud that it can have left behind (60 s) has returned or timed out.
STEP_LEASE = timedelta(seconds=90)


class Records:
    """Reads and writes the control plane's own records on behalf of workflows and other activities."""

    def __init__(self, sessions: SessionFactory, temporal: Temporal) -> None:
        self._sessions = sessions
        self._temporal = temporal

    @activity.defn
    async def claim_operation(self, order: OperationOrder) -> bool:
        """Takes a pending operation to running; False when it was cancelled or closed before it began,
        or when its resource is gone with its server.

        An operation that already runs is this workflow's own from an earlier attempt. Raises `NotFound`.
        """
        async with self._sessions() as session, session.begin():
            operation = await _locked_operation(session, order)
            if operation.state == "pending":
                resource = await _get(session, STATEFUL[order.resource_type], order.resource_id)
                if resource.deleted_at is not None:
                    return False
                operation.state = "running"
                operation.started_at = utc_now()
                resource.move(action_of(order.resource_type, order.action).transitional)
            return operation.state == "running"

    @activity.defn
    async def end_operation(self, end: OperationEnd) -> None:
        """Writes the resource's final state, the operation's end and the event in one transaction."""
        async with self._sessions() as session, session.begin():
            operation = await _locked_operation(session, end.order)
            if operation.finished_at is not None:
                return
            asleep = await settle(session, operation, end)
        await self._temporal.wake_endpoints(asleep)

    async def installation(self) -> UUID:
        async with self._sessions() as session:
            return await installation_id(session)

    async def get(self, table: type[Model], id: str | UUID) -> Model:
        """A record by its id. Raises `NotFound`."""
        async with self._sessions() as session:
            return await _get(session, table, id)

    async def find(self, query: Select[Any]) -> Sequence[Any]:
        """What a query of one entity or column finds."""
        async with self._sessions() as session:
            return (await session.scalars(query)).all()

    async def rows(self, query: Select[*Columns]) -> Sequence[Row[*Columns]]:
        """What a query of several entities or columns finds."""
        async with self._sessions() as session:
            return (await session.execute(query)).all()

    async def included(self, order: OperationOrder, table: type[Included]) -> Sequence[Included]:
        """The resources of a table that an operation holds beside its own."""
        async with self._sessions() as session:
            return [each for each in await lock_included(session, order) if isinstance(each, table)]

    async def observe(self, sightings: Sequence[Sighting]) -> int:
        """Writes what was seen of resources between operations; returns how many changed."""
        async with self._sessions() as session, session.begin():
            changed, asleep = await observe(session, sightings)
        await self._temporal.wake_endpoints(asleep)
        return len(changed)

    async def observe_included(self, order: OperationOrder, statuses: Mapping[UUID, str]) -> None:
        """Writes the observed statuses of resources that the operation holds beside its own.

        Raises `OperationClosed`.
        """
        async with self._sessions() as session, session.begin():
            for resource in await lock_included(session, order):
                resource.move(statuses.get(resource.id, resource.status), resource.status_message)
            await session.flush()
            await _require_open(session, order.operation_id)

    async def order_included(
        self, order: OperationOrder, action: str, wanted: Callable[[Any], bool], at_once: int
    ) -> ChildProgress:
        """Orders an action on held resources that are `wanted`, until `at_once` of these operations are open.

        Raises `OperationClosed`.
        """
        async with self._sessions() as session, session.begin():
            waiting = [each for each in await lock_included(session, order) if wanted(each)]
            parent = await _require_open(session, order.operation_id)
            if parent.state == "cancelling":
                waiting = []
            before = await session.scalars(select(Operation).where(col(Operation.parent_id) == parent.id))
            known = before.all()
            ended = [each for each in known if each.state not in OPEN_OPERATION_STATES]
            free = max(0, at_once - (len(known) - len(ended)))
            actor = Actor(parent.requested_by)
            ordered = [
                await order_operation(session, actor, each, action, parent=parent) for each in waiting[:free]
            ]
            return ChildProgress(
                ordered=[each.order for each in ordered],
                failed=[each.resource_name for each in ended if each.state != "succeeded"],
                ended=len(ended),
                total=len(known) + len(waiting),
            )

    async def note(self, order: OperationOrder, record: Record, **facts: object) -> None:
        """Writes facts about a resource, or what belongs to it, that a step of `order` has found out.

        Raises `OperationClosed`.
        """
        model = type(record)
        async with self._sessions() as session, session.begin():
            # The resource is locked first, as requests do; the other order would make deadlocks.
            await session.execute(update(model).where(col(model.id) == record.id).values(**facts))
            await _require_open(session, order.operation_id)
        for name, fact in facts.items():
            setattr(record, name, fact)

    async def begin_step(self, step: StepRun) -> int:
        """Records that a step runs, and says which attempt it is; its place and its start stay as they are.

        Raises `OperationClosed`.
        """
        async with self._sessions() as session, session.begin():
            await _require_open(session, step.operation_id)
            known = await session.scalar(_record_of(step))
            if known is not None:
                known.state, known.attempt = "running", known.attempt + 1
                known.finished_at = known.next_attempt_at = None
                return known.attempt
            steps = select(func.count()).where(col(OperationStep.operation_id) == UUID(step.operation_id))
            session.add(
                OperationStep(
                    operation_id=UUID(step.operation_id),
                    position=(await session.scalar(steps) or 0) + 1,
                    name=step.name,
                    run=step.number,
                    started_at=utc_now(),
                )
            )
        return 1

    async def renew_step(self, step: StepRun) -> None:
        """Records that a step still runs. Raises `OperationClosed`."""
        async with self._sessions() as session, session.begin():
            await _require_open(session, step.operation_id)
            await session.execute(update(OperationStep).where(_is(step)).values(updated_at=utc_now()))

    async def other_step_runs(self, order: OperationOrder, own: StepRun) -> bool:
        """Whether any step on the resource but this one may still be changing the world.

        Such a step is of an operation that a deletion by force has closed, or of an earlier attempt whose
        worker was lost.
        """
        running = exists().where(
            col(OperationStep.operation_id) == col(Operation.id),
            col(Operation.resource_id) == UUID(order.resource_id),
            col(OperationStep.state) == "running",
            col(OperationStep.updated_at) > utc_now() - STEP_LEASE,
            ~_is(own),
        )
        async with self._sessions() as session:
            return bool(await session.scalar(select(running)))

    async def detail_step(self, step: StepRun, detail: str) -> None:
        async with self._sessions() as session, session.begin():
            await session.execute(update(OperationStep).where(_is(step)).values(detail=detail))

    async def end_step(self, step: StepRun, detail: str | None = None) -> None:
        """Records that a step succeeded; nothing is left of the errors of earlier attempts."""
        async with self._sessions() as session, session.begin():
            operation = await session.get(Operation, UUID(step.operation_id), with_for_update=True)
            known = await session.scalar(_record_of(step))
            if known is None or operation is None:
                return
            known.state, known.finished_at, known.detail = "succeeded", utc_now(), detail
            known.first_failed_at = None
            if operation.state in OPEN_OPERATION_STATES:
                operation.error_code = operation.error_message = operation.stalled_at = None

    async def end_lost_steps(self) -> int:
        """Ends steps of closed operations whose worker was lost; says how many there were."""
        ended = select(col(Operation.id)).where(col(Operation.state).not_in(OPEN_OPERATION_STATES))
        lost = (
            update(OperationStep)
            .where(
                col(OperationStep.state) == "running",
                col(OperationStep.updated_at) < utc_now() - STEP_LEASE,
                col(OperationStep.operation_id).in_(ended),
            )
            .values(state="failed", finished_at=utc_now(), detail="Its worker was lost.")
            .execution_options(synchronize_session=False)
        )
        async with self._sessions() as session, session.begin():
            return int((await session.execute(lost)).rowcount)  # type: ignore[attr-defined]

    async def fail_step(self, step: StepRun, failure: StepFailure) -> None:
        """Records why a step failed and when it is tried again, on its operation too while that is open.

        When the step has failed for a minute, `operation.stalled` tells of it once.
        """
        now = utc_now()
        async with self._sessions() as session, session.begin():
            operation = await session.get(Operation, UUID(step.operation_id), with_for_update=True)
            known = await session.scalar(_record_of(step))
            if known is None or operation is None:
                return
            known.state, known.finished_at, known.detail = "failed", now, failure.message
            known.first_failed_at = known.first_failed_at or now
            if failure.pause is None or operation.state not in OPEN_OPERATION_STATES:
                return
            known.next_attempt_at = now + failure.pause
            operation.error_code, operation.error_message = failure.code, failure.message
            if operation.stalled_at is not None or now - known.first_failed_at < STALLED_AFTER:
                return
            operation.stalled_at = now
            asleep = await write_event(session, STALLED, operation)
        await self._temporal.wake_endpoints(asleep)


async def _require_open(session: AsyncSession, operation_id: str) -> Operation:
    """Locks the operation, so that nobody closes it before the transaction ends. Raises `OperationClosed`."""
    operation = await session.get(Operation, UUID(operation_id), with_for_update={"read": True})
    if operation is None or operation.state not in OPEN_OPERATION_STATES:
        raise OperationClosed("The operation was closed meanwhile: its steps do not go on.")
    return operation


async def _locked_operation(session: AsyncSession, order: OperationOrder) -> Operation:
    # Resources first, and a server before its instances, as requests do: who locked them in another order
    # would make deadlocks.
    await session.get(STATEFUL[order.resource_type], UUID(order.resource_id), with_for_update=True)
    await lock_included(session, order)
    operation = await session.get(Operation, UUID(order.operation_id), with_for_update=True)
    if operation is None:
        raise NotFound(f"Operation {order.operation_id} does not exist.")
    return operation


def _record_of(step: StepRun) -> Select[OperationStep]:
    return select(OperationStep).where(_is(step))


def _is(step: StepRun) -> ColumnElement[bool]:
    return and_(
        col(OperationStep.operation_id) == UUID(step.operation_id),
        col(OperationStep.name) == step.name,
        col(OperationStep.run) == step.number,
    )


async def _get(session: AsyncSession, model: type[Model], id: str | UUID) -> Model:
    found = await session.get(model, UUID(str(id)))
    if found is None:
        raise NotFound(f"{model.__name__} {id} does not exist any more.")
    return found
