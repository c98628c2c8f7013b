"""Servers whose machine was removed behind our back (case B11): told at once, and forgotten by force."""

import socket
from collections.abc import Mapping

import pytest

from deployerp.activities.instances import InstanceActivities
from deployerp.activities.records import Records
from deployerp.activities.servers import ServerActivities
from deployerp.activities.steps import nodes as nodes_module
from deployerp.activities.steps.hosts import Hosts
from deployerp.activities.steps.nodes import Nodes
from deployerp.core.errors import DeployError, HostUnreachable, NodeGone, ProviderError
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.domain.instances import Instance
from deployerp.domain.operations.messages import OperationOrder
from deployerp.domain.servers import Server
from deployerp.drivers.clouds.cloud import Node
from deployerp.drivers.server.host import generate_key_pair
from tests.conftest import Fleet
from tests.drivers.clouds.fake_cloud import FakeCloud, FakeClouds

pytestmark = pytest.mark.fault("27")

MACHINE = "node-1"


@pytest.fixture
def cloud() -> FakeCloud:
    """A cloud that has no machine."""
    return FakeCloud()


@pytest.fixture
def nodes(records: Records, settings: Settings, cloud: FakeCloud) -> Nodes:
    return Nodes(records, FakeClouds(cloud), Vault(settings.encryption_keys))


@pytest.fixture
def instances(records: Records, settings: Settings, nodes: Nodes) -> InstanceActivities:
    vault = Vault(settings.encryption_keys)
    return InstanceActivities(records, Hosts(vault, nodes), vault, settings)


@pytest.fixture
async def deletion(fleet: Fleet, records: Records, settings: Settings) -> OperationOrder:
    """The deletion of an instance on a server at whose address nobody answers."""
    return await deletion_on(fleet, records, settings)


async def deletion_on(
    fleet: Fleet, records: Records, settings: Settings, provider_id: str | None = None
) -> OperationOrder:
    begun = await fleet.begin_server("one", provider_id)
    order = await fleet.order(begun["operation"]["id"])
    await records.claim_operation(order)
    login, host = generate_key_pair("ours"), generate_key_pair("theirs")
    await records.note(
        order,
        await records.get(Server, order.resource_id),
        node_id=MACHINE,
        address="127.0.0.1",
        ssh_port=unused_port(),
        host_key=host.public,
        sealed_login_private_key=Vault(settings.encryption_keys).seal(login.private),
    )
    server = await fleet.settled(begun)
    instance = await fleet.instance(server["id"])
    begun = await fleet.client.data("DELETE", f"/v1/instances/{instance['id']}", status=202)
    return await fleet.order(begun["operation"]["id"])


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_the_step_of_an_instance_says_that_the_machine_is_gone(
    instances: InstanceActivities, deletion: OperationOrder
) -> None:
    with pytest.raises(NodeGone) as caught:
        await instances.remove_instance(deletion)
    assert (caught.value.code, caught.value.retryable) == ("node_gone", False)
    for said in (MACHINE, "server one", "by force"):
        assert said in caught.value.message


async def test_an_instance_whose_machine_is_gone_is_seen_as_failed(
    instances: InstanceActivities, deletion: OperationOrder
) -> None:
    assert await instances.observe_instance(deletion) == "failed"


async def test_a_machine_that_the_provider_has_is_only_unreachable(
    instances: InstanceActivities, deletion: OperationOrder, cloud: FakeCloud
) -> None:
    cloud.nodes[MACHINE] = Node(MACHINE, "one", "running", "127.0.0.1")
    with pytest.raises(HostUnreachable) as caught:
        await instances.remove_instance(deletion)
    assert caught.value.retryable


async def test_a_provider_that_does_not_answer_proves_nothing(
    instances: InstanceActivities, deletion: OperationOrder, cloud: FakeCloud
) -> None:
    def away(_: str) -> None:
        raise ProviderError("The cloud does not answer.")

    cloud.before_call = away
    with pytest.raises(HostUnreachable):
        await instances.remove_instance(deletion)
    with pytest.raises(DeployError):
        await instances.observe_instance(deletion)


async def test_a_cloud_that_does_not_list_a_machine_for_a_moment_is_asked_again(
    fleet: Fleet,
    records: Records,
    settings: Settings,
    instances: InstanceActivities,
    cloud: FakeCloud,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = {"name": "cloud", "kind": "digitalocean", "credentials": {"token": "secret"}}
    provider = await fleet.client.data("POST", "/v1/providers", body, 201)
    deletion = await deletion_on(fleet, records, settings, provider["id"])
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        cloud.nodes[MACHINE] = Node(MACHINE, "one", "running", "127.0.0.1")

    monkeypatch.setattr(nodes_module, "rest", rest)
    with pytest.raises(HostUnreachable):
        await instances.remove_instance(deletion)
    assert rests == [nodes_module.LOOK_AGAIN_SECONDS]


@pytest.mark.parametrize("step", ["start_node", "stop_node", "reboot_node"])
async def test_the_steps_of_a_server_say_the_same(
    step: str,
    records: Records,
    settings: Settings,
    nodes: Nodes,
    deletion: OperationOrder,
    fleet: Fleet,
) -> None:
    vault = Vault(settings.encryption_keys)
    servers = ServerActivities(records, nodes, Hosts(vault, nodes), vault, settings)
    instance = await records.get(Instance, deletion.resource_id)
    order = OperationOrder(
        deletion.operation_id, deletion.organization_id, "server", str(instance.server_id), step
    )
    with pytest.raises(NodeGone, match=MACHINE):
        await getattr(servers, step)(order)


async def test_destroying_a_machine_that_is_gone_says_so_and_succeeds(
    records: Records,
    settings: Settings,
    nodes: Nodes,
    deletion: OperationOrder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deployerp.activities import servers as servers_module

    said: list[str] = []
    monkeypatch.setattr(servers_module, "tell", said.append)
    vault = Vault(settings.encryption_keys)
    servers = ServerActivities(records, nodes, Hosts(vault, nodes), vault, settings)
    instance = await records.get(Instance, deletion.resource_id)
    order = OperationOrder(
        deletion.operation_id, deletion.organization_id, "server", str(instance.server_id), "delete"
    )
    noted: list[Mapping[str, object]] = []

    async def note(*_: object, **columns: object) -> None:
        noted.append(columns)

    monkeypatch.setattr(records, "note", note)
    await servers.destroy_node(order)
    assert said == [f"The provider did not have machine {MACHINE} any more"]
    assert noted == [{"node_id": None, "address": None}]
