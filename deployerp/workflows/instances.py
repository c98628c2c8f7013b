"""What is done to instances, step by step."""

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from deployerp.activities.instances import InstanceActivities

from deployerp.domain.operations.messages import OperationOrder
from deployerp.workflows.run import OperationRun, run_operation

_IMAGES = timedelta(minutes=30)
_DATABASE = timedelta(minutes=20)


async def _until_healthy(run: OperationRun) -> None:
    await run.step(InstanceActivities.wait_for_odoo)
    await run.step(InstanceActivities.create_route)
    await run.step(InstanceActivities.check_login)


async def _deploy(run: OperationRun) -> None:
    # What these two bring stays on the server for the next instance; the containers that prepare a database
    # are the instance's, and a worker that dies meanwhile leaves them.
    await run.step(InstanceActivities.pull_images, timeout=_IMAGES)
    await run.step(
        InstanceActivities.prepare_database, timeout=_DATABASE, undo=InstanceActivities.remove_instance
    )
    await run.step(InstanceActivities.create_network)
    await run.step(InstanceActivities.create_volumes)
    await run.step(InstanceActivities.start_postgres)
    await run.step(InstanceActivities.personalise_database)
    await run.step(InstanceActivities.start_odoo)
    await _until_healthy(run)


async def _start(run: OperationRun) -> None:
    await run.step(InstanceActivities.pull_images, timeout=_IMAGES)
    await _start_containers(run)


async def _start_containers(run: OperationRun) -> None:
    await run.step(InstanceActivities.start_postgres)
    await run.step(InstanceActivities.start_odoo)
    await _until_healthy(run)


async def _stop(run: OperationRun) -> None:
    await run.step(InstanceActivities.stop_containers)


async def _restart(run: OperationRun) -> None:
    # First, so that an instance whose image nobody has goes on running.
    await run.step(InstanceActivities.pull_images, timeout=_IMAGES)
    await run.step(InstanceActivities.stop_containers)
    await _start_containers(run)


async def _delete(run: OperationRun) -> None:
    try:
        await run.step(InstanceActivities.remove_instance, to_its_end=True)
    except ActivityError as error:
        if is_cancelled_exception(error) or not run.order.force:
            raise
        # Forced: forget what cannot be reached; the step keeps the reason.
        workflow.logger.warning("The instance's parts could not be removed and are forgotten.")


@workflow.defn
class DeployInstance:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _deploy)


@workflow.defn
class StartInstance:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _start, InstanceActivities.observe_instance)


@workflow.defn
class StopInstance:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _stop, InstanceActivities.observe_instance)


@workflow.defn
class RestartInstance:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _restart, InstanceActivities.observe_instance)


@workflow.defn
class DeleteInstance:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _delete, InstanceActivities.observe_instance)


WORKFLOWS = (DeployInstance, StartInstance, StopInstance, RestartInstance, DeleteInstance)
