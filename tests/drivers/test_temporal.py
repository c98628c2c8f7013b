"""What Temporal is asked for, against a real server: workflows that people find, and one sweep."""

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleIntervalSpec,
    ScheduleSpec,
    WorkflowExecutionStatus,
)
from temporalio.service import RPCError, RPCStatusCode

from deployerp.domain.operations.messages import OperationOrder, workflow_id
from deployerp.domain.operations.operation import Operation
from deployerp.drivers.temporal import KIND, NAME, ORGANIZATION, RESOURCE, SLUG, Temporal


@pytest.fixture
async def temporal(temporal_address: str) -> Temporal:
    return Temporal(await Client.connect(temporal_address), f"test-{uuid4().hex}")


@pytest.mark.fault("16")
async def test_an_operation_is_found_by_the_name_of_its_resource(temporal: Temporal) -> None:
    operation_id, slug = str(uuid4()), f"acme-{uuid4().hex[:8]}"
    order = OperationOrder(
        operation_id,
        str(uuid4()),
        "instance",
        str(uuid4()),
        "deploy",
        workflow_id=workflow_id("instance", "deploy", slug, operation_id),
        resource_name="Acme: Zürich",
        resource_slug=slug,
    )
    await temporal.start_operation(order)
    assert order.workflow_id == f"instance-deploy.{slug}.{operation_id}"
    assert re.fullmatch("[a-z0-9.-]+", order.workflow_id)
    described = await temporal.client.get_workflow_handle(order.workflow_id).describe()
    attributes = described.typed_search_attributes
    assert attributes[NAME] == "Acme: Zürich"
    assert attributes[SLUG] == slug
    assert attributes[KIND] == "instance.deploy"
    assert attributes[ORGANIZATION] == order.organization_id
    assert attributes[RESOURCE] == order.resource_id
    assert await described.memo() == {"name": "Acme: Zürich", "slug": slug}
    assert await described.static_summary() == f"Deploy instance {slug}"


@pytest.mark.fault("16")
async def test_an_operation_from_before_ids_were_kept_is_found_under_its_old_one(temporal: Temporal) -> None:
    operation = Operation(organization_id=uuid4(), resource_type="server", resource_id=uuid4(), action="stop")
    await temporal.start_operation(operation.order)
    assert await temporal.run_state(f"op-{operation.id}") == "running"


@pytest.mark.fault("16")
async def test_every_worker_adopts_the_sweep_that_runs(temporal: Temporal) -> None:
    await temporal.ensure_sweep()
    sweep = temporal.client.get_workflow_handle(f"{temporal._task_queue}-sweep")
    first = (await sweep.describe()).run_id
    await temporal.ensure_sweep()
    assert (await sweep.describe()).run_id == first
    await temporal.terminate(sweep.id, "An operator did it.")
    await temporal.ensure_sweep()
    described = await sweep.describe()
    assert (described.status, described.workflow_type) == (WorkflowExecutionStatus.RUNNING, "KeepSweeping")


@pytest.mark.fault("16")
async def test_the_schedule_of_older_versions_goes_with_its_last_round(temporal: Temporal) -> None:
    name = f"{temporal._task_queue}-sweep"
    old = await temporal.client.create_schedule(
        name,
        Schedule(
            action=ScheduleActionStartWorkflow("Sweep", id=name, task_queue=temporal._task_queue),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(hours=1))]),
        ),
        trigger_immediately=True,
    )
    while not (running := (await old.describe()).info.running_actions):
        pass
    await temporal.ensure_sweep()
    with pytest.raises(RPCError) as gone:
        await old.describe()
    assert gone.value.status == RPCStatusCode.NOT_FOUND
    assert await temporal.run_state(running[0].workflow_id) == "ended"
    assert await temporal.run_state(name) == "running"
