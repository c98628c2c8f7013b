"""The only writer of state: claims, steps, ends, and the facts of resources, each in one transaction."""

from typing import TypeVar
from uuid import UUID

from sqlalchemy import Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from temporalio import activity

from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.errors import NotFound
from deployerp.domain.event_log import write_event
from deployerp.domain.instances import Instance
from deployerp.domain.lifecycles import DELETED, FAILED, ResourceType, action_of, failure_event
from deployerp.domain.messages import EndpointOrder, OperationEnd, OperationOrder
from deployerp.domain.operations import Operation, OperationStep
from deployerp.domain.providers import Provider
from deployerp.domain.servers import Server
from deployerp.drivers.temporal import Temporal

Resource = Server | Instance
RESOURCES: dict[ResourceType, type[Resource]] = {"server": Server, "instance": Instance}
Model = TypeVar("Model", bound=Server | Instance | Provider)


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
                resource = await _existing(session, RESOURCES[order.resource_type], order.resource_id)
                if resource.deleted_at is not None:
                    return False
                operation.state = "running"
                operation.started_at = utc_now()
                resource.status = action_of(order.resource_type, order.action).transitional
                resource.status_message = None
            return operation.state == "running"

    @activity.defn
    async def end_operation(self, end: OperationEnd) -> None:
        """Writes the resource's final state, the operation's end and the event in one transaction."""
        async with self._sessions() as session, session.begin():
            operation = await _locked_operation(session, end.order)
            if operation.finished_at is not None:
                return
            operation.state = end.outcome
            operation.error_code, operation.error_message = end.code, end.message
            operation.finished_at = utc_now()
            asleep = await _settle(session, end)
        await self._temporal.wake_endpoints(asleep)

    async def server(self, server_id: str | UUID) -> Server:
        async with self._sessions() as session:
            return await _existing(session, Server, server_id)

    async def instance(self, instance_id: str | UUID) -> Instance:
        async with self._sessions() as session:
            return await _existing(session, Instance, instance_id)

    async def provider(self, provider_id: UUID) -> Provider:
        async with self._sessions() as session:
            return await _existing(session, Provider, provider_id)

    async def note(self, resource: Resource, **facts: object) -> None:
        """Writes facts about a resource that a step has found out."""
        model = type(resource)
        async with self._sessions() as session, session.begin():
            await session.execute(update(model).where(col(model.id) == resource.id).values(**facts))
        for name, fact in facts.items():
            setattr(resource, name, fact)

    async def begin_step(self, operation_id: str, name: str, attempt: int) -> None:
        """Records that a step runs; one that is tried again keeps its place and its start."""
        async with self._sessions() as session, session.begin():
            known = await session.scalar(_step(operation_id, name))
            if known is not None:
                known.state, known.attempt, known.finished_at = "running", attempt, None
                return
            steps = select(func.count()).where(col(OperationStep.operation_id) == UUID(operation_id))
            session.add(
                OperationStep(
                    operation_id=UUID(operation_id),
                    position=(await session.scalar(steps) or 0) + 1,
                    name=name,
                    attempt=attempt,
                    started_at=utc_now(),
                )
            )

    async def detail_step(self, operation_id: str, name: str, detail: str) -> None:
        async with self._sessions() as session, session.begin():
            step = await session.scalar(_step(operation_id, name))
            if step is not None:
                step.detail = detail

    async def end_step(self, operation_id: str, name: str, state: str, detail: str | None = None) -> None:
        """Records how a step ended; `detail`, where given, takes the place of what it said before."""
        async with self._sessions() as session, session.begin():
            step = await session.scalar(_step(operation_id, name))
            if step is not None:
                step.state, step.finished_at = state, utc_now()
                step.detail = detail or step.detail


async def _settle(session: AsyncSession, end: OperationEnd) -> list[EndpointOrder]:
    order = end.order
    action = action_of(order.resource_type, order.action)
    resource = await _existing(session, RESOURCES[order.resource_type], order.resource_id)
    if resource.deleted_at is not None:
        # Its server was deleted under it: that event has been told, and nothing brings it back.
        return []
    if end.outcome != "succeeded":
        resource.status = FAILED
        resource.status_message = end.message
        return await write_event(session, failure_event(order.resource_type, order.action), resource)
    resource.status = action.end
    resource.status_message = None
    if isinstance(resource, Instance) and action.name == "deploy":
        resource.deployed_at = utc_now()
    if action.end != DELETED:
        return await write_event(session, action.event, resource)
    return await _settle_deleted(session, order, resource)


async def _settle_deleted(
    session: AsyncSession, order: OperationOrder, resource: Server | Instance
) -> list[EndpointOrder]:
    """The resource is gone, and with a server all the instances that lived on it."""
    asleep = []
    if isinstance(resource, Server):
        lost = await session.scalars(
            select(Instance).where(col(Instance.server_id) == resource.id, col(Instance.status) != DELETED)
        )
        for instance in lost:
            instance.status, instance.deleted_at = DELETED, utc_now()
            instance.status_message = "Deleted with its server."
            asleep += await write_event(session, "instance.deleted", instance)
    resource.status, resource.deleted_at = DELETED, utc_now()
    asleep += await write_event(session, action_of(order.resource_type, order.action).event, resource)
    return asleep


async def _locked_operation(session: AsyncSession, order: OperationOrder) -> Operation:
    # The resource first, as requests do: who locked them the other way round would make deadlocks.
    await session.get(RESOURCES[order.resource_type], UUID(order.resource_id), with_for_update=True)
    operation = await session.get(Operation, UUID(order.operation_id), with_for_update=True)
    if operation is None:
        raise NotFound(f"Operation {order.operation_id} does not exist.")
    return operation


def _step(operation_id: str, name: str) -> Select[OperationStep]:
    return select(OperationStep).where(
        col(OperationStep.operation_id) == UUID(operation_id), col(OperationStep.name) == name
    )


async def _existing(session: AsyncSession, model: type[Model], id: str | UUID) -> Model:
    found = await session.get(model, UUID(str(id)))
    if found is None:
        raise NotFound(f"{model.__name__} {id} does not exist any more.")
    return found
