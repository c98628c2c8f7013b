"""What operations on servers do to the instances that live on them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import col
from temporalio import activity

from deployerp.activities.records import ChildProgress, Records
from deployerp.activities.steps.hosts import Hosts
from deployerp.activities.steps.instance_parts import INSTANCE_LABEL, containers_of, instance_labels
from deployerp.activities.steps.interceptor import tell
from deployerp.activities.steps.waiting import rest
from deployerp.core.errors import DeployError, OperationClosed
from deployerp.domain.instances import INSTANCE, Instance
from deployerp.domain.operations.messages import OperationOrder
from deployerp.domain.releases import Release
from deployerp.domain.servers import Server
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.temporal import Temporal

log = structlog.get_logger()
_AT_ONCE = 4
_LOOK_SECONDS = 1.0
# Of PostgreSQL's and Odoo's own time to stop, for some dozens of instances.
_STOP_SECONDS = 300


class ServerInstanceActivities:
    """Stops a server's instances before their machine, and brings them back after it."""

    def __init__(self, records: Records, hosts: Hosts, temporal: Temporal) -> None:
        self._records = records
        self._hosts = hosts
        self._temporal = temporal

    @activity.defn
    async def stop_instances(self, order: OperationOrder) -> None:
        """Stops the instances that run, so that their databases are closed before the machine goes.

        Where the machine does not answer they stop with it.
        """

        async def stop(engine: Engine, release: Release) -> None:
            for container in containers_of(release):
                await engine.stop_container(container)

        await self._with_each(order, stop, "stopped")

    @activity.defn
    async def start_stopped_instances(self, order: OperationOrder) -> None:
        """Starts again what `stop_instances` has stopped, where the machine still answers."""

        async def start(engine: Engine, release: Release) -> None:
            for container in reversed(containers_of(release)):
                await engine.start_container(container)

        await self._with_each(order, start, "started again")

    @activity.defn
    async def start_instances(self, order: OperationOrder) -> None:
        """Orders the start of each instance that is to run, a few at a time, and waits for their ends.

        What is left of instances that were deleted while the server was stopped is removed first. One that
        does not start has an operation of its own that says why: the server runs all the same.
        """
        async with self._engine(order) as engine:
            await self._remove_deleted(engine)
        while True:
            progress = await self._records.order_included(order, "start", is_to_run, _AT_ONCE)
            for child in progress.ordered:
                await self._temporal.offer_operation(child)
            tell(_summary(progress))
            if progress.ended == progress.total:
                return
            await rest(_LOOK_SECONDS)

    async def _with_each(
        self, order: OperationOrder, work: Callable[[Engine, Release], Awaitable[None]], done: str
    ) -> None:
        """Does `work` with each instance that the operation is stopping, and tells how that went."""
        stopping = INSTANCE.actions["stop"].transitional
        instances = [
            each.id for each in await self._records.included(order, Instance) if each.status == stopping
        ]
        if not instances:
            tell("No instance runs")
            return
        active = col(Release.instance_id).in_(instances) & col(Release.is_active)
        releases = await self._records.find(select(Release).where(active))
        places = asyncio.Semaphore(_AT_ONCE)

        async def take(engine: Engine, release: Release) -> None:
            async with places:
                await work(engine, release)

        try:
            async with asyncio.timeout(_STOP_SECONDS), self._engine(order) as engine:
                taken = (take(engine, release) for release in releases)
                # One that fails does not keep the others from their turn.
                failures = [each for each in await asyncio.gather(*taken, return_exceptions=True) if each]
                if failures:
                    raise failures[0]
        except OperationClosed:
            raise
        except (DeployError, TimeoutError) as error:
            tell(f"They share what becomes of the machine. {error}")
        else:
            tell(f"{len(instances)} {done}")

    async def _remove_deleted(self, engine: Engine) -> None:
        deleted = select(col(Instance.id)).where(
            col(Instance.id).in_(await _find_labelled(engine)), col(Instance.deleted_at).is_not(None)
        )
        for instance_id in await self._records.find(deleted):
            log.info("removes what is left of a deleted instance", instance_id=str(instance_id))
            await engine.remove_labelled(instance_labels(instance_id))

    @asynccontextmanager
    async def _engine(self, order: OperationOrder) -> AsyncIterator[Engine]:
        server = await self._records.get(Server, order.resource_id)
        async with self._hosts.open(server) as host:
            yield await host.engine()


def is_to_run(instance: Instance) -> bool:
    """Whether a server that starts brings the instance back."""
    return instance.has_run and instance.desired_state == "running" and instance.deleted_at is None


async def _find_labelled(engine: Engine) -> list[UUID]:
    """The instances of which the engine has containers."""
    found = set()
    for container in await engine.find_containers({INSTANCE_LABEL: None}):
        # Whoever else works on the server may label as they like.
        with suppress(ValueError):
            found.add(UUID(container.labels[INSTANCE_LABEL]))
    return sorted(found)


def _summary(progress: ChildProgress) -> str:
    if not progress.total:
        return "No instance is to run"
    told = f"{progress.ended} of {progress.total} have ended their start"
    return f"{told}; these do not run: {', '.join(sorted(progress.failed))}" if progress.failed else told
