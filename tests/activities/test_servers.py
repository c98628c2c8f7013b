"""Steps of servers against a cloud in memory: what they find there, and what they make of it."""

import asyncio
import dataclasses
import heapq
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
from temporalio.testing import ActivityEnvironment

from deployerp.activities import records as records_module
from deployerp.activities import servers as servers_module
from deployerp.activities.records import Records, StepFailure
from deployerp.activities.servers import ServerActivities
from deployerp.activities.steps.hosts import Hosts
from deployerp.activities.steps.nodes import Nodes
from deployerp.core.errors import (
    CredentialsRefused,
    HostForwardingForbidden,
    HostUnreachable,
    NotHealthy,
    OperationClosed,
    ProviderRefused,
    ProviderThrottled,
)
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.domain.operations.messages import OperationOrder
from deployerp.domain.operations.steps import StepRun
from deployerp.domain.servers import SERVER_TAG, Server
from deployerp.drivers.clouds.cloud import Node, NodeSpec
from tests.conftest import Fleet
from tests.drivers.clouds.fake_cloud import FakeCloud, FakeClouds


@pytest.fixture
def cloud() -> FakeCloud:
    return FakeCloud()


@pytest.fixture
def steps(records: Records, settings: Settings, cloud: FakeCloud) -> ServerActivities:
    vault = Vault(settings.encryption_keys)
    nodes = Nodes(records, FakeClouds(cloud), vault)
    return ServerActivities(records, nodes, Hosts(vault, nodes), vault, settings)


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
    assert (await records.get(Server, order.resource_id)).node_id == node.id


async def test_nobody_waits_for_a_node_that_will_never_run(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud
) -> None:
    await created(steps, order)
    fail(cloud)
    with pytest.raises(ProviderRefused, match="retry the operation"):
        await steps.wait_for_node(order)


@pytest.mark.fault("1")
async def test_a_forced_deletion_destroys_the_node_that_a_creation_under_way_still_makes(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, records: Records, fleet: Fleet
) -> None:
    await records.claim_operation(order)
    await records.begin_step(StepRun(order.operation_id, "create_node"))
    answers = hold(cloud)
    creating = asyncio.create_task(created(steps, order))
    await answers.called.wait()

    deletion = await delete_by_force(fleet, order)
    destroying = asyncio.create_task(steps.destroy_node(deletion))
    await asyncio.sleep(0.2)
    assert not destroying.done()

    answers.may_return.set()
    with pytest.raises(OperationClosed):
        await creating
    await records.fail_step(
        StepRun(order.operation_id, "create_node"), StepFailure("cancelled", "Interrupted.")
    )
    await destroying
    assert cloud.nodes == {}


async def test_a_machine_is_written_down_before_it_is_destroyed(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, records: Records, fleet: Fleet
) -> None:
    """Parts of it that a destruction leaves when it breaks off are found by its id alone."""
    await created(steps, order)
    [node] = cloud.nodes.values()
    await records.note(order, await records.get(Server, order.resource_id), node_id=None)
    deletion = await delete_by_force(fleet, order)

    async def break_off(node_id: str) -> None:
        del cloud.nodes[node_id]
        raise ConnectionResetError

    destroy, cloud.destroy_node = cloud.destroy_node, break_off  # type: ignore[method-assign]
    with pytest.raises(ConnectionResetError):
        await steps.destroy_node(deletion)
    cloud.destroy_node = destroy  # type: ignore[method-assign]
    assert (await records.get(Server, order.resource_id)).node_id == node.id


@pytest.mark.fault("1")
async def test_a_creation_whose_operation_was_closed_before_does_not_call_the_cloud(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, fleet: Fleet
) -> None:
    await delete_by_force(fleet, order)
    with pytest.raises(OperationClosed):
        await created(steps, order)
    assert "create_node" not in cloud.calls


@pytest.mark.fault("1")
async def test_a_step_of_a_dead_worker_does_not_hold_up_a_deletion_for_ever(
    steps: ServerActivities,
    order: OperationOrder,
    records: Records,
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await records.begin_step(StepRun(order.operation_id, "create_node"))
    deletion = await delete_by_force(fleet, order)
    monkeypatch.setattr(records_module, "STEP_LEASE", timedelta(seconds=0))
    async with asyncio.timeout(5):
        await steps.destroy_node(deletion)


@pytest.mark.fault("2")
async def test_a_cancelled_creation_ends_when_the_cloud_has_answered_and_knows_its_node(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, records: Records
) -> None:
    answers = hold(cloud)
    creating = asyncio.create_task(created(steps, order))
    await answers.called.wait()
    creating.cancel()
    await asyncio.sleep(0.2)
    assert not creating.done()
    answers.may_return.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert (await records.get(Server, order.resource_id)).node_id in cloud.nodes


@pytest.mark.fault("27")
async def test_a_node_that_is_not_listed_yet_is_waited_for(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, records: Records
) -> None:
    """Case R11: clouds list a machine some time after they have made it."""
    await created(steps, order)
    hide(cloud, looks=5)
    await steps.wait_for_node(order)
    assert (await records.get(Server, order.resource_id)).address == "192.0.2.1"


@pytest.mark.fault("27")
async def test_a_node_that_is_never_listed_is_named_and_destroyed_by_its_recorded_id(
    steps: ServerActivities,
    order: OperationOrder,
    cloud: FakeCloud,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case R11: no machine is forgotten, also where the list never shows it."""
    await created(steps, order)
    [node_id] = cloud.nodes
    get = cloud.get_node
    hide(cloud, looks=1_000)
    monkeypatch.setattr(servers_module, "_LISTED_SECONDS", 0.1)
    with pytest.raises(ProviderRefused, match=node_id):
        await steps.wait_for_node(order)
    monkeypatch.setattr(cloud, "get_node", get)
    await steps.destroy_node(order)
    assert cloud.nodes == {}


class Clock:
    """A time that passes only while somebody rests."""

    def __init__(self) -> None:
        self.now = 0.0

    async def rest(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(servers_module, "rest", clock.rest)
    return clock


@pytest.fixture
async def in_a_cloud(fleet: Fleet, steps: ServerActivities) -> OperationOrder:
    """A provision at a cloud that counts calls, whose keys are written down."""
    body = {"name": "cloud", "kind": "digitalocean", "credentials": {"token": "secret"}}
    provider = await fleet.client.data("POST", "/v1/providers", body, 201)
    order = await fleet.order((await fleet.begin_server("two", provider["id"]))["operation"]["id"])
    await steps.prepare_keys(order)
    return order


def boot_slowly(cloud: FakeCloud, clock: Clock, seconds: float) -> list[float]:
    """Keeps the only node pending for so long; the times at which the cloud is called, as they come."""
    [node] = cloud.nodes.values()
    times: list[float] = []

    def called(_: str) -> None:
        times.append(clock.now)
        state = "running" if clock.now >= seconds else "pending"
        cloud.nodes[node.id] = dataclasses.replace(node, state=state)

    cloud.before_call = called
    return times


@pytest.mark.fault("27")
async def test_a_cloud_is_called_seldom_while_a_machine_boots(
    steps: ServerActivities, in_a_cloud: OperationOrder, cloud: FakeCloud, clock: Clock
) -> None:
    """Case R12: at most 20 calls a minute for each server."""
    await created(steps, in_a_cloud)
    times = boot_slowly(cloud, clock, 200)
    await steps.wait_for_node(in_a_cloud)
    assert max(sum(start <= time < start + 60 for time in times) for start in times) <= 20
    assert times[1] < 3
    assert clock.now < 220


@pytest.mark.fault("27")
async def test_a_machine_beside_the_control_plane_is_looked_for_quickly(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, clock: Clock
) -> None:
    await created(steps, order)
    boot_slowly(cloud, clock, 1)
    await steps.wait_for_node(order)
    assert clock.now < 2


@pytest.mark.fault("27")
async def test_a_cloud_that_asks_to_wait_is_left_alone_for_that_time(
    steps: ServerActivities, in_a_cloud: OperationOrder, cloud: FakeCloud, clock: Clock
) -> None:
    """Case R12."""
    await created(steps, in_a_cloud)
    times: list[float] = []

    def throttle_first(_: str) -> None:
        times.append(clock.now)
        if len(times) == 1:
            raise ProviderThrottled("Too many calls.", retry_after=30)

    cloud.before_call = throttle_first
    await steps.wait_for_node(in_a_cloud)
    assert times[1] >= 27


class SharedClock:
    """A time that passes when all who share it rest."""

    def __init__(self, sharers: int) -> None:
        self.now, self._awake = 0.0, sharers
        self._resting: list[tuple[float, int, asyncio.Event]] = []
        self._count = itertools.count()

    async def rest(self, seconds: float) -> None:
        waking = asyncio.Event()
        heapq.heappush(self._resting, (self.now + seconds, next(self._count), waking))
        self.leave()
        await waking.wait()

    def leave(self) -> None:
        self._awake -= 1
        if not self._awake and self._resting:
            self.now, _, waking = heapq.heappop(self._resting)
            self._awake += 1
            waking.set()


@pytest.mark.fault("27")
async def test_twenty_provisions_at_once_stay_within_what_a_cloud_lets_an_account_ask(
    steps: ServerActivities,
    in_a_cloud: OperationOrder,
    cloud: FakeCloud,
    fleet: Fleet,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case R12: 250 calls a minute, and each that is refused asks to wait for half a minute."""
    provider_id = str((await records.get(Server, in_a_cloud.resource_id)).provider_id)
    begun = [await fleet.begin_server(f"n{number}", provider_id) for number in range(19)]
    orders = [in_a_cloud, *[await fleet.order(each["operation"]["id"]) for each in begun]]
    for order in orders:
        await steps.prepare_keys(order)
        await created(steps, order)
    clock = SharedClock(len(orders))
    monkeypatch.setattr(servers_module, "rest", clock.rest)
    cloud.nodes = {each: dataclasses.replace(node, state="pending") for each, node in cloud.nodes.items()}
    answered: list[float] = []
    refused: list[float] = []

    def called(_: str) -> None:
        if sum(time > clock.now - 60 for time in answered) >= 250:
            refused.append(clock.now)
            raise ProviderThrottled("Too many calls.", retry_after=30)
        answered.append(clock.now)
        if clock.now >= 120:
            cloud.nodes = {
                each: dataclasses.replace(one, state="running") for each, one in cloud.nodes.items()
            }

    cloud.before_call = called

    async def wait(order: OperationOrder) -> None:
        await steps.wait_for_node(order)
        clock.leave()

    async with asyncio.timeout(60):
        await asyncio.gather(*map(wait, orders))
    for order in orders:
        assert (await records.get(Server, order.resource_id)).address == "192.0.2.1"
    assert len(refused) <= len(orders)
    assert clock.now < 200


class StandInHosts:
    """Opens hosts that are unreachable for some tries, and then are as `host` says."""

    def __init__(self, clock: Clock, host: Any, unreachable: int = 0) -> None:
        self.clock, self.host, self.unreachable = clock, host, unreachable
        self.times: list[float] = []
        self.dropped = 0

    def drop(self, server: Server) -> None:
        self.dropped += 1

    @asynccontextmanager
    async def open(self, server: Server) -> AsyncIterator[Any]:
        self.times.append(self.clock.now)
        if len(self.times) <= self.unreachable:
            raise HostUnreachable("Not yet.")
        yield self.host


@pytest.mark.fault("27")
async def test_a_machine_that_boots_is_not_logged_in_to_without_end(
    steps: ServerActivities, in_a_cloud: OperationOrder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = AsyncMock()
    hosts = StandInHosts(clock, host, unreachable=20)
    monkeypatch.setattr(steps, "_hosts", hosts)
    await steps.wait_for_ssh(in_a_cloud)
    assert max(sum(start <= time < start + 60 for time in hosts.times) for start in hosts.times) <= 10
    host.check_forwarding.assert_awaited_once()


@pytest.mark.fault("14")
async def test_a_machine_that_forbids_forwarding_is_not_waited_for(
    steps: ServerActivities, order: OperationOrder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = AsyncMock()
    host.check_forwarding.side_effect = HostForwardingForbidden("No.")
    monkeypatch.setattr(steps, "_hosts", StandInHosts(clock, host))
    with pytest.raises(HostForwardingForbidden):
        await steps.wait_for_ssh(order)


@pytest.mark.fault("24")
async def test_a_reboot_is_done_when_the_machine_has_booted_again(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, clock: Clock, monkeypatch: Any
) -> None:
    await created(steps, order)
    host = AsyncMock()
    # Before, while it goes down, and when it is back.
    host.boot_id.side_effect = ["one", "one", HostUnreachable("Down."), "two"]
    hosts = StandInHosts(clock, host)
    monkeypatch.setattr(steps, "_hosts", hosts)
    await steps.reboot_node(order)
    assert cloud.calls.count("reboot_node") == 1
    assert hosts.dropped == 1
    assert host.boot_id.await_count == 4


@pytest.mark.fault("24")
async def test_a_reboot_that_does_not_happen_is_told(
    steps: ServerActivities, order: OperationOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await created(steps, order)
    host = AsyncMock()
    host.boot_id.return_value = "one"
    monkeypatch.setattr(steps, "_hosts", StandInHosts(Clock(), host))
    monkeypatch.setattr(servers_module, "_REBOOT_SECONDS", 0.05)
    with pytest.raises(NotHealthy, match="has not booted again"):
        await steps.reboot_node(order)


@pytest.mark.fault("24")
async def test_a_machine_that_does_not_answer_is_rebooted_all_the_same(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, clock: Clock, monkeypatch: Any
) -> None:
    await created(steps, order)
    monkeypatch.setattr(steps, "_hosts", StandInHosts(clock, AsyncMock(), unreachable=1))
    await steps.reboot_node(order)
    assert "reboot_node" in cloud.calls


@pytest.mark.fault("24")
async def test_what_a_removed_machine_has_left_goes_with_its_server(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud
) -> None:
    await created(steps, order)
    cloud.nodes.clear()
    await steps.destroy_node(order)
    assert "destroy_node" in cloud.calls


@dataclasses.dataclass
class Answers:
    """A call to create a node, from its arrival to its answer."""

    called: asyncio.Event
    may_return: asyncio.Event


def hold(cloud: FakeCloud) -> Answers:
    """Keeps back the answer to the next creation, and the node with it."""
    answers = Answers(asyncio.Event(), asyncio.Event())
    create = cloud.create_node

    async def held(spec: NodeSpec) -> Node:
        answers.called.set()
        await answers.may_return.wait()
        return await create(spec)

    cloud.create_node = held  # type: ignore[method-assign]
    return answers


def hide(cloud: FakeCloud, looks: int) -> None:
    """Leaves all nodes out of this many answers."""
    find, get, left = cloud.find_nodes, cloud.get_node, iter(range(looks))

    async def find_hidden(tags: Mapping[str, str]) -> list[Node]:
        return [] if next(left, None) is not None else await find(tags)

    async def get_hidden(node_id: str) -> Node | None:
        return None if next(left, None) is not None else await get(node_id)

    cloud.find_nodes = find_hidden  # type: ignore[method-assign]
    cloud.get_node = get_hidden  # type: ignore[method-assign]


async def delete_by_force(fleet: Fleet, order: OperationOrder) -> OperationOrder:
    """Deletes the server of an operation by force; the claimed deletion."""
    path = f"/v1/servers/{order.resource_id}?force=true"
    deletion = await fleet.order((await fleet.client.data("DELETE", path, status=202))["operation"]["id"])
    await fleet.records.claim_operation(deletion)
    return deletion


@pytest.mark.fault("26")
async def test_credentials_that_the_cloud_refuses_are_told_with_their_provider(
    steps: ServerActivities, order: OperationOrder, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(tags: Mapping[str, str]) -> list[Node]:
        raise CredentialsRefused("The provider of kind docker answered 401.")

    monkeypatch.setattr(cloud, "find_nodes", refuse)
    with pytest.raises(
        CredentialsRefused, match=r"credentials of provider for one\b.* 401\. .*retry"
    ) as refused:
        await created(steps, order)
    assert (refused.value.code, refused.value.retryable) == ("credentials_refused", False)
