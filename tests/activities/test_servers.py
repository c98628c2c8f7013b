"""Steps of servers against a cloud in memory: what they find there, and what they make of it."""

import dataclasses

import pytest
from temporalio.testing import ActivityEnvironment

from deployerp.activities.hosts import Hosts
from deployerp.activities.records import Records
from deployerp.activities.servers import SERVER_TAG, ServerActivities
from deployerp.domain.errors import ProviderRefused
from deployerp.domain.messages import OperationOrder
from deployerp.domain.secrets import Vault
from deployerp.domain.settings import Settings
from tests.conftest import Fleet
from tests.drivers.fake_cloud import FakeCloud, FakeClouds


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


@pytest.fixture
def steps(records: Records, settings: Settings, cloud: FakeCloud) -> ServerActivities:
    vault = Vault(settings.encryption_keys)
    return ServerActivities(records, FakeClouds(cloud), Hosts(vault), vault, settings)


@pytest.fixture
async def order(fleet: Fleet, steps: ServerActivities) -> OperationOrder:
    """A provision whose keys are written down."""
    begun = await fleet.begin_server()
    order = await fleet.order(begun["operation"]["id"])
    await steps.prepare_keys(order)
    return order


async def created(steps: ServerActivities, order: OperationOrder) -> None:
    await ActivityEnvironment().run(steps.create_node, order)


def fail(cloud: FakeCloud) -> str:
    """Leaves the only node as an attempt that broke off does; its id."""
    [node] = cloud.nodes.values()
    cloud.nodes[node.id] = dataclasses.replace(node, state="failed", address=None)
    return node.id


async def test_a_node_that_is_there_is_taken(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud
) -> None:
    await created(steps, order)
    await created(steps, order)
    assert cloud.calls.count("create_node") == 1
    [node] = cloud.nodes.values()
    assert node.tags[SERVER_TAG] == order.resource_id


async def test_a_node_whose_creation_broke_off_makes_way_for_another(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, records: Records
) -> None:
    await created(steps, order)
    broken = fail(cloud)
    await created(steps, order)
    [node] = cloud.nodes.values()
    assert node.id != broken
    assert node.state == "running"
    assert (await records.server(order.resource_id)).node_id == node.id


async def test_nobody_waits_for_a_node_that_will_never_run(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud
) -> None:
    await created(steps, order)
    fail(cloud)
    with pytest.raises(ProviderRefused, match="retry the operation"):
        await steps.wait_for_node(order)
