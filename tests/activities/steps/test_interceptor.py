"""A running step and the operation that it belongs to."""

import asyncio

import pytest

from deployerp.activities.records import Records
from deployerp.activities.steps import interceptor
from deployerp.activities.steps.interceptor import Step
from deployerp.core.errors import OperationClosed
from deployerp.domain.operations.steps import StepRun
from deployerp.domain.servers import Server
from tests.conftest import Fleet

pytestmark = pytest.mark.fault("1")


async def run(records: Records, operation_id: str, name: str, seconds: float) -> None:
    async with Step(records, StepRun(operation_id, name)).recorded():
        await asyncio.sleep(seconds)


async def test_a_step_of_a_closed_operation_does_not_begin(fleet: Fleet, records: Records) -> None:
    order = await fleet.end(await fleet.begin_server(), "cancelled")
    with pytest.raises(OperationClosed):
        await run(records, order.operation_id, "create_node", 0)
    told = await fleet.client.data("GET", f"/v1/operations/{order.operation_id}")
    assert told["steps"] == []


async def test_a_running_step_ends_when_its_operation_is_closed(
    fleet: Fleet, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "RENEWAL_SECONDS", 0.05)
    begun = await fleet.begin_server()
    operation_id = begun["operation"]["id"]
    running = asyncio.create_task(run(records, operation_id, "create_node", 3600))
    await asyncio.sleep(0.2)
    assert not running.done()
    await fleet.client.call("DELETE", f"/v1/servers/{begun['id']}?force=true")
    async with asyncio.timeout(10):
        with pytest.raises(OperationClosed):
            await running
    told = await fleet.client.data("GET", f"/v1/operations/{operation_id}")
    assert [step["state"] for step in told["steps"]] == ["failed"]


async def test_facts_of_a_closed_operation_are_not_written(fleet: Fleet, records: Records) -> None:
    order = await fleet.end(await fleet.begin_server(), "failed")
    server = await records.get(Server, order.resource_id)
    with pytest.raises(OperationClosed):
        await records.note(order, server, node_id="a-machine-too-many")
    assert (await records.get(Server, order.resource_id)).node_id is None
