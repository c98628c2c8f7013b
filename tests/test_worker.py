"""The workers as they run: whatever comes and goes, one workflow for each shard of the periodic work."""

import asyncio

import pytest
from temporalio.client import WorkflowExecution

from deployerp.core.settings import Settings
from deployerp.drivers.temporal import Temporal
from deployerp.worker import open_worker
from tests.conftest import Fleet, free_port, new_client, open_api


@pytest.mark.fault("16")
async def test_each_shard_has_one_workflow_for_all_workers(settings: Settings, fleet: Fleet) -> None:
    fast = settings.model_copy(update={"sweep_seconds": 0.1})
    unreached = settings.model_copy(update={"temporal_address": f"127.0.0.1:{free_port()}"})
    async with open_api(unreached, settled=False) as http:
        offline = Fleet(await new_client(http, unreached), fleet.records)
        provider_id = await connect_nowhere(offline)
        for worker in ("first", "second"):
            async with open_worker(fast):
                await until_begun(offline, await offline.begin_server(worker, provider_id))
    temporal = await Temporal.open(settings)
    running = [each async for each in temporal.client.list_workflows(_of_periodic_work(settings))]
    queue = settings.temporal_task_queue
    assert sorted(each.id for each in running) == [f"{queue}-reap-0", f"{queue}-sweep-0"]
    assert all([await events_of(temporal, each) < 40 for each in running])


async def connect_nowhere(fleet: Fleet) -> str:
    """A provider whose cloud does not answer: no machine is left behind."""
    nowhere = {"auth_url": f"http://127.0.0.1:{free_port()}", "username": "u", "password": "p"}
    provider = {
        "name": "nowhere",
        "kind": "openstack",
        "credentials": nowhere | {"project": "p", "region": "r"},
    }
    return (await fleet.client.data("POST", "/v1/providers", provider, 201))["id"]


async def until_begun(fleet: Fleet, begun: dict) -> None:
    """Waits for an operation that only a sweep can start."""
    async with asyncio.timeout(30):
        path = f"/v1/operations/{begun['operation']['id']}"
        while (await fleet.client.data("GET", path))["startedAt"] is None:
            await asyncio.sleep(0.1)


def _of_periodic_work(settings: Settings) -> str:
    return f"TaskQueue = '{settings.temporal_task_queue}' AND WorkflowType = 'KeepWorking'"


async def events_of(temporal: Temporal, execution: WorkflowExecution) -> int:
    history = await temporal.client.get_workflow_handle(execution.id).fetch_history()
    return len(history.events)
