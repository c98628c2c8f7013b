"""The workflow of periodic work goes on for ever, and its history stays short."""

from uuid import uuid4

import pytest
from temporalio.client import Client, WorkflowExecutionStatus

from deployerp.domain.periodic import Shard
from deployerp.workflows.periodic import SHIFTS
from tests.workflows.stand_ins import StandIns, until_cancelled, working


@pytest.mark.fault("16")
async def test_after_so_many_shifts_it_goes_on_with_an_empty_history(temporal_address: str) -> None:
    client = await Client.connect(temporal_address)

    async def play(_: int) -> None:
        if len(stand_ins.calls) > SHIFTS:
            await until_cancelled(1)

    stand_ins = StandIns({"keep_working": play})
    queue = f"periodic-{uuid4()}"
    async with working(client, stand_ins, queue):
        handle = await client.start_workflow("KeepWorking", Shard("sweep"), id=queue, task_queue=queue)
        first_run = client.get_workflow_handle(queue, run_id=handle.result_run_id)
        while (await first_run.describe()).status != WorkflowExecutionStatus.CONTINUED_AS_NEW:
            assert len((await first_run.fetch_history()).events) <= 7 * SHIFTS + 10
        assert (await client.get_workflow_handle(queue).describe()).status == WorkflowExecutionStatus.RUNNING
        await client.get_workflow_handle(queue).cancel()
