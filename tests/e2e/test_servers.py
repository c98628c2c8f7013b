"""Servers that stop, come back, vanish or do not answer."""

import asyncio
import time
import uuid

from sqlalchemy import update
from sqlmodel import col

from deployerp.domain.providers import Provider
from tests.conftest import Client, open_api
from tests.e2e import world
from tests.e2e.conftest import House, Shop
from tests.e2e.plane import Browser, Plane, browsing

WHERE = ("address", "sshPort", "httpPort", "httpsPort", "hostKey", "status")


async def test_a_server_keeps_its_place_and_its_instances(plane: Plane, house: House, shop: Shop) -> None:
    server = await plane.get(f"/v1/servers/{house.id}")
    async with browsing(shop.url) as browser:
        await plane.act("servers", house.id, "stop")
        assert (await plane.get(f"/v1/servers/{house.id}"))["status"] == "stopped"
        assert (await browser.get("/web/login"))[0] == 0
        assert await world.output_of("docker", "inspect", "-f", "{{.State.Running}}", house.node) == "false\n"

        await plane.act("servers", house.id, "start")
        await until_login(browser)
        await plane.act("servers", house.id, "restart")
        await until_login(browser)
    again = await plane.get(f"/v1/servers/{house.id}")
    assert {name: again[name] for name in WHERE} == {name: server[name] for name in WHERE}
    assert (await plane.get(f"/v1/instances/{shop.id}"))["url"] == shop.url
    assert await world.nodes_of(house.id) == [house.node]


async def until_login(browser: Browser, seconds: float = 30) -> None:
    """Nobody starts the instance: it comes back by itself."""
    deadline = time.monotonic() + seconds
    while not await browser.shows_login():
        assert time.monotonic() < deadline, f"no login page after {seconds} s"
        await asyncio.sleep(0.2)


async def test_a_new_control_plane_finds_its_servers_again(plane: Plane, house: House, shop: Shop) -> None:
    await plane.worker.stop()
    await plane.worker.start()
    async with open_api(plane.settings) as http:
        client = Client(http, plane.client.organization_id, plane.client.token)
        path = f"/v1/instances/{shop.id}/actions"
        begun = await client.data("POST", path, {"action": "restart"}, status=202)
        await plane.ended(begun["operation"]["id"])
    async with browsing(shop.url) as browser:
        assert await browser.shows_login()


async def test_force_deletes_a_server_that_was_removed_behind_our_back(plane: Plane) -> None:
    server, _ = await plane.provision()
    server_id, path = server["id"], f"/v1/servers/{server['id']}"
    plane.faults.fail("pull_images", when="before")
    instance = await plane.begin("POST", "/v1/instances", plane.instance_body(server_id))
    await plane.ended(instance["operation"]["id"], "failed")
    assert len(await world.remove_servers([server_id])) == 2

    # Without force, nothing is forgotten as long as the server may only be out of reach.
    refused = await plane.client.call("DELETE", path, status=409)
    assert refused["error"]["details"] == {"instances": 1}
    operation = await plane.do("DELETE", f"/v1/instances/{instance['id']}", state="failed")
    assert operation["errorCode"] == "host_unreachable"

    await plane.do("DELETE", f"{path}?force=true")
    for gone in (path, f"/v1/instances/{instance['id']}"):
        await plane.client.call("GET", gone, status=404)
    await plane.await_webhooks(server_id, ["server.deleted"])
    await plane.await_webhooks(instance["id"], ["instance.deleted"])


async def test_force_forgets_a_server_whose_provider_refuses(plane: Plane) -> None:
    plane.faults.fail("create_node")
    server = await plane.begin("POST", "/v1/servers", plane.server_body())
    await plane.ended(server["operation"]["id"], "failed")
    path = f"/v1/servers/{server['id']}"
    await change_provider(plane, "gone")
    try:
        operation = await plane.do("DELETE", path, state="failed")
        assert operation["errorCode"] == "provider_refused"
        assert (await plane.get(path))["status"] == "failed"
        operation = await plane.do("DELETE", f"{path}?force=true")
    finally:
        await change_provider(plane, "docker")
    assert "provider kind" in operation["steps"][0]["detail"], "the step does not tell what was given up"
    await plane.client.call("GET", path, status=404)


async def change_provider(plane: Plane, kind: str) -> None:
    async with plane.sessions() as session, session.begin():
        await session.execute(
            update(Provider).where(col(Provider.id) == uuid.UUID(plane.provider_id)).values(kind=kind)
        )


async def test_force_takes_over_from_an_operation_that_hangs(plane: Plane) -> None:
    server = await plane.begin("POST", "/v1/servers", plane.server_body())
    path, operation_path = f"/v1/servers/{server['id']}", f"/v1/operations/{server['operation']['id']}"

    async def freeze() -> None:
        await world.output_of("docker", "pause", *await world.nodes_of(server["id"]))

    # It never answers: the operation waits for it for a quarter of an hour.
    plane.faults.do("wait_for_ssh", freeze)
    await plane.until_step(server["operation"]["id"], "wait_for_ssh", "does not answer")
    refused = await plane.client.call("DELETE", path, status=409)
    assert refused["error"]["code"] == "operation_in_progress"

    await plane.do("DELETE", f"{path}?force=true")
    hanging = await plane.get(operation_path)
    assert (hanging["state"], hanging["errorCode"]) == ("cancelled", "superseded")
    assert await world.left_of_server(server["id"]) == []
