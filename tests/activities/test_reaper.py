"""Nodes that no record wants, in a cloud in memory."""

from collections import Counter

import pytest

from deployerp.activities.reaper import NodeReaper
from deployerp.activities.records import Records
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.base import new_id
from deployerp.database.sessions import SessionFactory
from deployerp.domain.installations import INSTALLATION_TAG
from deployerp.domain.servers import SERVER_TAG
from deployerp.drivers.clouds.cloud import Node
from tests.conftest import Fleet
from tests.drivers.clouds.fake_cloud import FakeCloud, FakeClouds

pytestmark = pytest.mark.fault("1")


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


@pytest.fixture
def reaper(sessions: SessionFactory, settings: Settings, cloud: FakeCloud) -> NodeReaper:
    return NodeReaper(sessions, FakeClouds(cloud), Vault(settings.encryption_keys))


async def add_node(cloud: FakeCloud, installation: object, server_id: object) -> str:
    tags = {INSTALLATION_TAG: str(installation), SERVER_TAG: str(server_id)}
    node = Node(f"node-{len(cloud.nodes) + 1}", "one", "running", "192.0.2.1", tags=tags)
    cloud.nodes[node.id] = node
    return node.id


async def test_a_node_of_a_deleted_server_is_destroyed_and_no_other(
    fleet: Fleet, records: Records, reaper: NodeReaper, cloud: FakeCloud
) -> None:
    ours = await records.installation()
    deleted = await fleet.server("one")
    await fleet.end(await fleet.client.data("DELETE", f"/v1/servers/{deleted['id']}"))
    running = await fleet.server("two")
    leaked = await add_node(cloud, ours, deleted["id"])
    wanted = await add_node(cloud, ours, running["id"])
    unknown = await add_node(cloud, ours, new_id())
    not_an_id = await add_node(cloud, ours, "another program's")
    theirs = await add_node(cloud, new_id(), deleted["id"])
    done = await reaper.reap()
    assert leaked not in cloud.nodes
    assert {wanted, unknown, not_an_id, theirs} == cloud.nodes.keys()
    # Two providers lead to the same account here.
    assert done == Counter(destroyed=1, unknown=4)


async def test_a_provider_that_fails_does_not_stop_the_others(
    fleet: Fleet, records: Records, reaper: NodeReaper, cloud: FakeCloud
) -> None:
    deleted = await fleet.server("one")
    await fleet.end(await fleet.client.data("DELETE", f"/v1/servers/{deleted['id']}"))
    await fleet.provider("another")
    leaked = await add_node(cloud, await records.installation(), deleted["id"])
    failing = iter([True])

    def fail_once(call: str) -> None:
        if next(failing, False):
            raise RuntimeError("It does not answer.")

    cloud.before_call = fail_once
    await reaper.reap()
    assert leaked not in cloud.nodes


async def test_an_installation_keeps_its_id(records: Records) -> None:
    assert await records.installation() == await records.installation()
