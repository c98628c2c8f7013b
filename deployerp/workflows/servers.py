"""What is done to servers, step by step."""

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from deployerp.activities.server_instances import ServerInstanceActivities
    from deployerp.activities.servers import ServerActivities

from deployerp.domain.operations.messages import OperationOrder
from deployerp.workflows.run import OperationRun, run_operation

# A cloud may take minutes to boot a machine, and the distribution's packages minutes more.
_BOOT = timedelta(minutes=15)
# Each instance may be tried for ten minutes, and a few start at once.
_INSTANCES = timedelta(hours=6)


async def _until_usable(run: OperationRun) -> None:
    await run.step(ServerActivities.wait_for_node, timeout=_BOOT)
    await run.step(ServerActivities.wait_for_ssh, timeout=_BOOT)


async def _provision(run: OperationRun) -> None:
    await run.step(ServerActivities.prepare_keys)
    await run.step(ServerActivities.create_node, undo=ServerActivities.destroy_node)
    await _until_usable(run)
    await run.step(ServerActivities.prepare_host, timeout=_BOOT)
    await run.step(ServerActivities.check_engine)
    await run.step(ServerActivities.start_caddy)


async def _start(run: OperationRun) -> None:
    await run.step(ServerActivities.start_node)
    await _bring_back(run)


async def _bring_back(run: OperationRun) -> None:
    await _until_usable(run)
    await run.step(ServerActivities.check_engine)
    await run.step(ServerActivities.start_caddy)
    await run.step(ServerInstanceActivities.start_instances, timeout=_INSTANCES)


async def _stop_instances(run: OperationRun) -> None:
    await run.step(
        ServerInstanceActivities.stop_instances, undo=ServerInstanceActivities.start_stopped_instances
    )


async def _stop(run: OperationRun) -> None:
    await _stop_instances(run)
    await run.step(ServerActivities.stop_node)


async def _restart(run: OperationRun) -> None:
    await _stop_instances(run)
    await run.step(ServerActivities.reboot_node)
    await _bring_back(run)


async def _delete(run: OperationRun) -> None:
    try:
        await run.step(ServerActivities.destroy_node, to_its_end=True)
    except ActivityError as error:
        if is_cancelled_exception(error) or not run.order.force:
            raise
        # Forced: forget what cannot be reached; the step keeps the reason.
        workflow.logger.warning("The machine could not be destroyed and is forgotten.")


@workflow.defn
class ProvisionServer:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _provision)


@workflow.defn
class StartServer:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _start, ServerActivities.observe_server)


@workflow.defn
class StopServer:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _stop, ServerActivities.observe_server)


@workflow.defn
class RestartServer:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _restart, ServerActivities.observe_server)


@workflow.defn
class DeleteServer:
    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, _delete, ServerActivities.observe_server)


WORKFLOWS = (ProvisionServer, StartServer, StopServer, RestartServer, DeleteServer)
