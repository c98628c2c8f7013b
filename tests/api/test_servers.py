"""Servers through the API."""

import asyncio
from collections import Counter
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.operations.messages import OperationEnd
from deployerp.domain.operations.operation import Operation
from deployerp.domain.servers import Server
from tests.conftest import Client, Fleet


async def test_a_server_is_accepted_with_its_operation(client: Client, fleet: Fleet) -> None:
    provider = await fleet.provider()
    body = {"name": "one", "providerId": provider["id"], "size": "small", "location": "here"}
    answer = await client.request("POST", "/v1/servers", body)
    assert answer.status_code == 202
    server = answer.json()["data"]
    operation = server.pop("operation")
    assert answer.headers["Location"] == f"/v1/operations/{operation['id']}"
    assert (operation["state"], operation["action"]) == ("pending", "provision")
    assert (operation["resourceType"], operation["resourceId"]) == ("server", server["id"])
    assert {name: server[name] for name in body} == body
    assert server["status"] == "pending"
    assert server == await client.data("GET", f"/v1/servers/{server['id']}")
    assert [each["id"] for each in await client.data("GET", "/v1/servers")] == [server["id"]]


@pytest.mark.fault("24")
async def test_an_accepted_action_shows_the_time_of_the_change(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    path = f"/v1/servers/{server['id']}"
    for action in (
        client.data("POST", f"{path}/actions", {"action": "stop"}, 202),
        client.data("DELETE", f"{path}?force=true", status=202),
    ):
        begun = await action
        assert begun["updatedAt"] == (await client.data("GET", path))["updatedAt"] > server["updatedAt"]


async def test_a_server_needs_a_provider_that_there_is(client: Client, fleet: Fleet) -> None:
    await client.error(
        "POST", "/v1/servers", {"name": "one", "providerId": str(uuid4()), "size": "s"}, code="not_found"
    )
    gone = (await fleet.provider())["id"]
    await client.call("DELETE", f"/v1/providers/{gone}", status=204)
    await client.error(
        "POST", "/v1/servers", {"name": "one", "providerId": gone, "size": "s"}, code="not_found"
    )
    assert await client.data("GET", "/v1/servers") == []


async def test_a_name_is_free_again_when_its_server_is_deleted(client: Client, fleet: Fleet) -> None:
    server = await fleet.server("one")
    body = {"name": "one", "providerId": server["providerId"], "size": "small"}
    error = await client.error("POST", "/v1/servers", body, code="conflict")
    assert error["details"] == {"field": "name"}
    begun = await client.data("DELETE", f"/v1/servers/{server['id']}", status=202)
    order = await fleet.order(begun["operation"]["id"])
    await fleet.records.claim_operation(order)
    await client.error("POST", "/v1/servers", body, code="conflict")
    await fleet.end(begun)
    await client.call("POST", "/v1/servers", body, status=202)


async def test_actions_take_a_server_on_its_way_and_back(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    path = f"/v1/servers/{server['id']}"
    for action, on_its_way, end in (
        ("stop", "stopping", "stopped"),
        ("start", "starting", "running"),
        ("restart", "restarting", "running"),
    ):
        begun = await client.data("POST", f"{path}/actions", {"action": action}, 202)
        assert begun["status"] == on_its_way
        assert (await fleet.settled(begun))["status"] == end


async def test_an_action_from_a_state_that_does_not_allow_it_is_refused(client: Client, fleet: Fleet) -> None:
    path = f"/v1/servers/{(await fleet.server())['id']}"
    error = await client.error("POST", f"{path}/actions", {"action": "start"}, code="invalid_state")
    assert error["details"] == {"status": "running", "allowed": ["stopped"]}
    never = await fleet.settled(await fleet.begin_server("two"), "failed")
    path = f"/v1/servers/{never['id']}"
    for action in ("start", "stop", "restart"):
        await client.error("POST", f"{path}/actions", {"action": action}, code="invalid_state")
    assert len(await client.data("GET", "/v1/operations")) == 2


async def test_a_second_change_is_told_which_operation_runs(client: Client, fleet: Fleet) -> None:
    begun = await fleet.begin_server()
    path, running = f"/v1/servers/{begun['id']}", begun["operation"]["id"]
    for method, tail, body in (
        ("POST", "/actions", {"action": "restart"}),
        ("DELETE", "", None),
    ):
        error = await client.error(method, path + tail, body, code="operation_in_progress")
        assert error["details"] == {"operation_id": running}
    assert (await client.data("GET", path))["status"] == "pending"


async def test_of_a_hundred_actions_at_once_exactly_one_is_accepted(client: Client, fleet: Fleet) -> None:
    path = f"/v1/servers/{(await fleet.server())['id']}"
    answers = await asyncio.gather(
        *(client.request("POST", f"{path}/actions", {"action": "restart"}) for _ in range(100))
    )
    assert Counter(answer.status_code for answer in answers) == {202: 1, 409: 99}
    (accepted,) = [each.json()["data"]["operation"]["id"] for each in answers if each.status_code == 202]
    refused = [each.json()["error"] for each in answers if each.status_code == 409]
    assert {each["code"] for each in refused} == {"operation_in_progress"}
    assert {each["details"]["operation_id"] for each in refused} == {accepted}
    assert len(await client.data("GET", "/v1/operations")) == 2


async def test_of_many_creations_with_one_name_one_is_accepted(client: Client, fleet: Fleet) -> None:
    body = {"name": "one", "providerId": (await fleet.provider())["id"], "size": "small"}
    answers = await asyncio.gather(*(client.request("POST", "/v1/servers", body) for _ in range(20)))
    assert Counter(answer.status_code for answer in answers) == {202: 1, 409: 19}
    assert {each.json()["error"]["code"] for each in answers if each.status_code == 409} == {"conflict"}
    assert len(await client.data("GET", "/v1/operations")) == 1


async def test_a_server_with_instances_is_deleted_only_by_force(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    path = f"/v1/servers/{server['id']}"
    instance = await fleet.instance(server["id"])
    error = await client.error("DELETE", path, code="conflict")
    assert error["details"] == {"instances": 1}
    assert (await client.data("GET", path))["status"] == "running"
    begun = await client.data("DELETE", f"{path}?force=true", status=202)
    assert begun["status"] == "deleting"
    await fleet.end(begun)
    await client.error("GET", path, code="not_found")
    await client.error("GET", f"/v1/instances/{instance['id']}", code="not_found")
    assert await client.data("GET", "/v1/instances") == []


async def test_an_instance_and_the_deletion_of_its_server_do_not_pass_each_other(
    client: Client, fleet: Fleet
) -> None:
    for round_ in range(5):
        server = await fleet.server(f"s{round_}")
        body = {"name": "a", "slug": f"a{round_}", "serverId": server["id"], "odooVersion": "19.0"}
        created, deleted = await asyncio.gather(
            client.request("POST", "/v1/instances", body),
            client.request("DELETE", f"/v1/servers/{server['id']}"),
        )
        assert sorted((created.status_code, deleted.status_code)) == [202, 409]


async def test_force_ends_what_runs_on_a_server(client: Client, fleet: Fleet) -> None:
    begun = await fleet.begin_server()
    order = await fleet.order(begun["operation"]["id"])
    await fleet.records.claim_operation(order)
    deletion = await client.data("DELETE", f"/v1/servers/{begun['id']}?force=true", status=202)
    superseded = await client.data("GET", f"/v1/operations/{begun['operation']['id']}")
    assert (superseded["state"], superseded["errorCode"]) == ("cancelled", "superseded")
    assert await fleet.records.claim_operation(order) is False
    await fleet.end(deletion)


async def test_a_deletion_by_force_is_not_begun_anew_by_another(client: Client, fleet: Fleet) -> None:
    begun = await fleet.begin_server()
    path = f"/v1/servers/{begun['id']}?force=true"
    answers = await asyncio.gather(*(client.request("DELETE", path) for _ in range(20)))
    assert Counter(answer.status_code for answer in answers) == {202: 1, 409: 19}
    refused = {each.json()["error"]["code"] for each in answers if each.status_code == 409}
    assert refused == {"operation_in_progress"}
    operations = await client.data("GET", "/v1/operations")
    assert [(each["action"], each["state"]) for each in operations] == [
        ("delete", "pending"),
        ("provision", "cancelled"),
    ]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("step", ["claim", "end"])
async def test_a_deletion_by_force_and_the_worker_do_not_wait_for_each_other(
    client: Client, fleet: Fleet, sessions: SessionFactory, step: str
) -> None:
    begun = await fleet.begin_server()
    order = await fleet.order(begun["operation"]["id"])
    work = fleet.records.claim_operation(order)
    if step == "end":
        await work
        work = fleet.records.end_operation(OperationEnd(order, "succeeded"))
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with sessions() as session, session.begin():
        # As a request does: the server first.
        await session.get(Server, UUID(begun["id"]), with_for_update=True)
        working = asyncio.create_task(work)
        async with asyncio.timeout(10):
            while not await session.scalar(waiting):
                await asyncio.sleep(0.01)
        operation = await session.get(Operation, UUID(order.operation_id))
        operation.state, operation.finished_at = "cancelled", utc_now()
    assert not await working


async def test_a_failed_server_says_why_and_can_be_deleted(client: Client, fleet: Fleet) -> None:
    begun = await fleet.begin_server()
    server = await fleet.settled(begun, "failed", code="provider_refused", message="No such size: pick one.")
    assert (server["status"], server["statusMessage"]) == ("failed", "No such size: pick one.")
    operation = await client.data("GET", f"/v1/operations/{begun['operation']['id']}")
    assert (operation["state"], operation["errorCode"]) == ("failed", "provider_refused")
    await fleet.end(await client.data("DELETE", f"/v1/servers/{server['id']}", status=202))
