"""What becomes of instances when their server is stopped, started, restarted or deleted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from temporalio.testing import ActivityEnvironment

from deployerp.activities import server_instances as module
from deployerp.activities.records import Records
from deployerp.activities.server_instances import ServerInstanceActivities, is_to_run
from deployerp.activities.steps.instance_parts import containers_of, instance_labels
from deployerp.core.errors import EngineError, HostUnreachable, OperationClosed
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.domain.operations.messages import OperationEnd, OperationOrder
from deployerp.domain.operations.steps import StepRun
from deployerp.domain.servers import Server
from deployerp.drivers.engine.containers import ContainerSpec
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import Host
from deployerp.drivers.temporal import Temporal
from tests.activities.conftest import Neighbours, Removal, release_of
from tests.conftest import Fleet

Run = Callable[[str], Awaitable[None]]
pytestmark = pytest.mark.fault("7")


class Machine(Neighbours):
    """This machine, unless it is told not to answer."""

    reachable = True

    @asynccontextmanager
    async def open(self, server: Server) -> AsyncIterator[Host]:
        if not self.reachable:
            raise HostUnreachable("The machine does not answer.")
        yield self._host


@pytest.fixture
def machine(settings: Settings, host: Host) -> Machine:
    return Machine(Vault(settings.encryption_keys), host)


@pytest.fixture
async def steps(
    records: Records, machine: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> ServerInstanceActivities:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    return ServerInstanceActivities(records, machine, await Temporal.open(settings))


@pytest.fixture
def run_containers(engine: Engine, busybox: str, records: Records, remove_afterwards: Removal) -> Run:
    """Two containers with the names and the labels of the instance's."""

    async def run(id: str) -> None:
        labels = instance_labels(id)
        remove_afterwards(labels)
        for name in containers_of(await release_of(records, id)):
            await engine.ensure_container(
                ContainerSpec(
                    name=name, image=busybox, labels=labels, command=["sleep", "600"], stop_timeout=0
                )
            )
            await engine.start_container(name)

    return run


async def states(engine: Engine, id: str) -> list[str]:
    return [each.state for each in await engine.find_containers(instance_labels(id))]


async def statuses(fleet: Fleet) -> dict[str, str]:
    return {each["slug"]: each["status"] for each in await fleet.client.data("GET", "/v1/instances")}


async def act(fleet: Fleet, resource: str, id: str, action: str) -> dict:
    return await fleet.client.data("POST", f"/v1/{resource}/{id}/actions", {"action": action}, 202)


async def claimed(fleet: Fleet, begun: dict) -> OperationOrder:
    order = await fleet.order(begun["operation"]["id"])
    assert await fleet.records.claim_operation(order)
    return order


async def children(fleet: Fleet, parent: OperationOrder) -> list[dict]:
    found = await fleet.client.data("GET", "/v1/operations?action=start&resource_type=instance")
    return [each for each in found if each["parentId"] == parent.operation_id]


async def types_after(fleet: Fleet, before: int) -> Sequence[str]:
    return [each["type"] for each in await fleet.client.data("GET", f"/v1/events?after={before}")]


async def test_a_server_that_is_stopped_takes_its_instances_along(
    fleet: Fleet, steps: ServerInstanceActivities, records: Records, engine: Engine, run_containers: Run
) -> None:
    server = await fleet.server()
    runs, _ = await fleet.instance(server["id"], "runs"), await fleet.instance(server["id"], "stays")
    stays = (await fleet.client.data("GET", "/v1/instances?q=stays"))[0]
    await fleet.settled(await act(fleet, "instances", stays["id"], "stop"))
    await run_containers(runs["id"])
    before = len(await fleet.client.data("GET", "/v1/events"))

    order = await claimed(fleet, await act(fleet, "servers", server["id"], "stop"))
    assert await statuses(fleet) == {"runs": "stopping", "stays": "stopped"}
    await ActivityEnvironment().run(steps.stop_instances, order)
    assert await states(engine, runs["id"]) == ["exited", "exited"]
    await records.end_operation(OperationEnd(order, "succeeded"))
    assert await statuses(fleet) == {"runs": "stopped", "stays": "stopped"}
    assert await types_after(fleet, before) == ["instance.stopped", "server.stopped"]


async def test_a_server_that_starts_brings_back_what_is_to_run(
    fleet: Fleet, steps: ServerInstanceActivities, records: Records
) -> None:
    server = await fleet.server()
    for slug in ("one", "two"):
        await fleet.instance(server["id"], slug)
    stays = await fleet.instance(server["id"], "stays")
    await fleet.settled(await act(fleet, "instances", stays["id"], "stop"))
    await fleet.end(await act(fleet, "servers", server["id"], "stop"))

    order = await claimed(fleet, await act(fleet, "servers", server["id"], "start"))
    assert set((await statuses(fleet)).values()) == {"stopped"}
    starting = asyncio.create_task(ActivityEnvironment().run(steps.start_instances, order))
    ordered: list[dict] = []
    while len(ordered) < 2:
        ordered = await children(fleet, order)
        await asyncio.sleep(0.01)
    assert await statuses(fleet) == {"one": "starting", "two": "starting", "stays": "stopped"}
    good, bad = sorted(ordered, key=lambda each: each["id"])
    await fleet.end({"operation": good})
    assert not starting.done()
    await fleet.end({"operation": bad}, "failed", code="not_healthy", message="Odoo does not answer.")
    await asyncio.wait_for(starting, 10)
    await records.end_operation(OperationEnd(order, "succeeded"))
    assert await statuses(fleet) == {"one": "running", "two": "stopped", "stays": "stopped"}
    assert (await fleet.client.data("GET", f"/v1/servers/{server['id']}"))["status"] == "running"
    # Nothing is held any more.
    for instance_id in (good["resourceId"], stays["id"]):
        await fleet.client.data("DELETE", f"/v1/instances/{instance_id}", status=202)


async def test_a_few_instances_start_at_once(
    fleet: Fleet, steps: ServerInstanceActivities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    server = await fleet.server()
    for number in range(5):
        await fleet.instance(server["id"], f"i{number}")
    await fleet.end(await act(fleet, "servers", server["id"], "stop"))
    order = await claimed(fleet, await act(fleet, "servers", server["id"], "start"))
    starting = asyncio.create_task(ActivityEnvironment().run(steps.start_instances, order))
    ended: set[str] = set()
    while not starting.done():
        open_ones = [each for each in await children(fleet, order) if each["state"] == "pending"]
        assert len(open_ones) <= 2
        for each in open_ones:
            await fleet.end({"operation": each})
            ended.add(each["resourceId"])
        await asyncio.sleep(0.01)
    await starting
    assert len(ended) == 5


async def test_cancelling_a_start_cancels_what_it_has_ordered(
    fleet: Fleet, steps: ServerInstanceActivities, records: Records
) -> None:
    server = await fleet.server()
    await fleet.instance(server["id"], "one")
    await fleet.end(await act(fleet, "servers", server["id"], "stop"))
    order = await claimed(fleet, await act(fleet, "servers", server["id"], "start"))
    await records.order_included(order, "start", is_to_run, 4)
    await fleet.client.data("POST", f"/v1/operations/{order.operation_id}/cancel", status=202)
    (child,) = await children(fleet, order)
    assert child["state"] == "cancelling"
    assert (await records.order_included(order, "start", is_to_run, 4)).ordered == []


@pytest.mark.parametrize("action", ["stop", "restart"])
async def test_an_instance_that_is_held_is_left_alone(fleet: Fleet, action: str) -> None:
    server = await fleet.server()
    instance = await fleet.instance(server["id"], "shop")
    begun = await act(fleet, "servers", server["id"], action)
    path = f"/v1/instances/{instance['id']}"
    for method, end, body in (
        ("POST", "/actions", {"action": "restart"}),
        ("DELETE", "", None),
        ("DELETE", "?force=true", None),
    ):
        refused = await fleet.client.call(method, path + end, body, 409)
        assert refused["error"]["code"] == "operation_in_progress"
        assert refused["error"]["details"] == {"operation_id": begun["operation"]["id"]}
        assert "server one" in refused["error"]["message"]


@pytest.mark.parametrize("action", ["stop", "restart"])
async def test_a_server_waits_for_operations_on_its_instances(fleet: Fleet, action: str) -> None:
    server = await fleet.server()
    deploy = await fleet.begin_instance(server["id"], "shop")
    refused = await fleet.client.call("POST", f"/v1/servers/{server['id']}/actions", {"action": action}, 409)
    assert refused["error"]["details"] == {"operation_id": deploy["operation"]["id"]}
    assert (await fleet.client.data("GET", f"/v1/servers/{server['id']}"))["status"] == "running"


async def test_a_deletion_by_force_takes_the_place_of_operations_on_instances(fleet: Fleet) -> None:
    server = await fleet.server()
    instance = await fleet.instance(server["id"], "shop")
    restart = await claimed(fleet, await act(fleet, "instances", instance["id"], "restart"))
    deletion = await fleet.client.data("DELETE", f"/v1/servers/{server['id']}?force=true", status=202)
    closed = await fleet.client.data("GET", f"/v1/operations/{restart.operation_id}")
    assert (closed["state"], closed["errorCode"]) == ("cancelled", "superseded")
    with pytest.raises(OperationClosed):
        await fleet.records.begin_step(StepRun(restart.operation_id, "start_odoo"))
    assert await statuses(fleet) == {"shop": "deleting"}
    await fleet.end(deletion)
    assert await statuses(fleet) == {}


async def test_an_instance_on_a_stopped_server_is_deleted_by_force_only(
    fleet: Fleet, steps: ServerInstanceActivities, engine: Engine, run_containers: Run
) -> None:
    server = await fleet.server()
    instance = await fleet.instance(server["id"], "shop")
    await run_containers(instance["id"])
    await fleet.end(await act(fleet, "servers", server["id"], "stop"))
    path = f"/v1/instances/{instance['id']}"
    for method, end, body in (("DELETE", "", None), ("POST", "/actions", {"action": "start"})):
        refused = await fleet.client.call(method, path + end, body, 409)
        assert refused["error"]["code"] == "invalid_state"
        assert "The server one is stopped" in refused["error"]["message"]
    await fleet.end(await fleet.client.data("DELETE", f"{path}?force=true", status=202))

    order = await claimed(fleet, await act(fleet, "servers", server["id"], "start"))
    await ActivityEnvironment().run(steps.start_instances, order)
    assert await states(engine, instance["id"]) == []


@pytest.mark.parametrize("seen", ["running", "stopped", None])
async def test_a_stop_that_fails_leaves_instances_as_they_are_seen(
    fleet: Fleet, records: Records, seen: str | None
) -> None:
    server = await fleet.server()
    instance = await fleet.instance(server["id"], "shop")
    before = len(await fleet.client.data("GET", "/v1/events"))
    order = await claimed(fleet, await act(fleet, "servers", server["id"], "stop"))
    if seen is not None:
        await records.observe_included(order, {UUID(instance["id"]): seen})
    await records.end_operation(OperationEnd(order, "failed", "provider_refused", "No.", "running"))
    assert await statuses(fleet) == {"shop": seen or "running"}
    told = ["instance.stopped"] if seen == "stopped" else []
    assert await types_after(fleet, before) == [*told, "server.stop_failed"]


async def test_instances_are_started_again_when_their_machine_does_not_stop(
    fleet: Fleet, steps: ServerInstanceActivities, engine: Engine, run_containers: Run
) -> None:
    server = await fleet.server()
    shop = (await fleet.instance(server["id"], "shop"))["id"]
    await run_containers(shop)
    order = await claimed(fleet, await act(fleet, "servers", server["id"], "stop"))
    await ActivityEnvironment().run(steps.stop_instances, order)
    assert await states(engine, shop) == ["exited", "exited"]
    await ActivityEnvironment().run(steps.start_stopped_instances, order)
    assert await states(engine, shop) == ["running", "running"]


async def test_an_instance_that_cannot_be_stopped_does_not_keep_the_others_running(
    fleet: Fleet,
    steps: ServerInstanceActivities,
    engine: Engine,
    run_containers: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    server = await fleet.server()
    shops = [(await fleet.instance(server["id"], slug))["id"] for slug in ("one", "two")]
    for shop in shops:
        await run_containers(shop)
    first = containers_of(await release_of(fleet.records, min(shops)))
    stop = Engine.stop_container

    async def refuse_first(self: Engine, name: str, timeout: int | None = None) -> None:
        if name in first:
            raise EngineError("The engine refuses.")
        await stop(self, name, timeout)

    monkeypatch.setattr(Engine, "stop_container", refuse_first)
    order = await claimed(fleet, await act(fleet, "servers", server["id"], "stop"))
    await ActivityEnvironment().run(steps.stop_instances, order)
    assert await states(engine, min(shops)) == ["running", "running"]
    assert await states(engine, max(shops)) == ["exited", "exited"]


async def test_a_machine_that_does_not_answer_is_stopped_all_the_same(
    fleet: Fleet, steps: ServerInstanceActivities, machine: Machine
) -> None:
    server = await fleet.server()
    await fleet.instance(server["id"], "shop")
    order = await claimed(fleet, await act(fleet, "servers", server["id"], "stop"))
    machine.reachable = False
    await ActivityEnvironment().run(steps.stop_instances, order)
    await ActivityEnvironment().run(steps.start_stopped_instances, order)


async def test_two_requests_at_once_hold_a_server_and_its_instance_once(fleet: Fleet) -> None:
    server = await fleet.server()
    instance = await fleet.instance(server["id"], "shop")
    paths = [f"/v1/servers/{server['id']}/actions", f"/v1/instances/{instance['id']}/actions"] * 4
    answers = await asyncio.gather(
        *(fleet.client.request("POST", path, {"action": "restart"}) for path in paths)
    )
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
