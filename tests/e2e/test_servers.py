"""Servers that stop, come back, vanish or do not answer."""

import asyncio
import time
import uuid

import pytest
from sqlalchemy import update
from sqlmodel import col

from deployerp.domain.providers import Provider
from tests.conftest import Client, open_api
from tests.e2e import world
from tests.e2e.conftest import House, Shop
from tests.e2e.plane import Browser, Plane, browsing

WHERE = ("address", "sshPort", "httpPort", "httpsPort", "hostKey", "status")


@pytest.mark.fault("7")
async def test_a_server_keeps_its_place_and_its_instances(plane: Plane, house: House, shop: Shop) -> None:
    server = await plane.get(f"/v1/servers/{house.id}")
    shop_path = f"/v1/instances/{shop.id}"
    async with browsing(shop.url) as browser:
        await plane.act("servers", house.id, "stop")
        assert (await plane.get(f"/v1/servers/{house.id}"))["status"] == "stopped"
        assert (await plane.get(shop_path))["status"] == "stopped"
        for method, path, body in (
            ("DELETE", shop_path, None),
            ("POST", f"{shop_path}/actions", {"action": "start"}),
        ):
            refused = await plane.client.call(method, path, body, status=409)
            assert "is stopped" in refused["error"]["message"]
        assert (await browser.get("/web/login"))[0] == 0
        assert await world.output_of("docker", "inspect", "-f", "{{.State.Running}}", house.node) == "false\n"

        for action in ("start", "restart"):
            await plane.act("servers", house.id, action)
            assert (await plane.get(shop_path))["status"] == "running"
            assert await browser.shows_login()
    again = await plane.get(f"/v1/servers/{house.id}")
    assert {name: again[name] for name in WHERE} == {name: server[name] for name in WHERE}
    assert (await plane.get(f"/v1/instances/{shop.id}"))["url"] == shop.url
    assert await world.nodes_of(house.id) == [house.node]


async def until_login(browser: Browser, seconds: float = 30) -> None:
    """The instance is there again, or comes back by itself."""
    deadline = time.monotonic() + seconds
    while not await browser.shows_login():
        assert time.monotonic() < deadline, f"no login page after {seconds} s"
        await asyncio.sleep(0.2)


@pytest.mark.fault("9")
async def test_a_restart_rebuilds_a_lost_proxy_for_all_instances(
    plane: Plane, house: House, shop: Shop
) -> None:
    other, _ = await plane.deploy(house.id)
    lose = "docker rm --force deployerp-caddy && docker volume rm deployerp-caddy-config deployerp-caddy-data"
    await world.output_of("docker", "exec", house.node, "sh", "-c", lose)
    await plane.act("servers", house.id, "restart")
    for url in (shop.url, other["url"]):
        async with browsing(url) as browser:
            await until_login(browser)
    await plane.delete("instances", other["id"])


@pytest.mark.fault("27")
async def test_a_restart_names_who_holds_the_port_of_the_proxy(
    plane: Plane, house: House, shop: Shop
) -> None:
    """Case B01: somebody else's container has port 80 of the server."""
    hold = (
        "docker stop deployerp-caddy && docker run --detach --restart always --name squatter --publish 80:80"
        f" --entrypoint sleep {plane.settings.caddy_image} 1d"
    )
    await world.output_of("docker", "exec", house.node, "sh", "-c", hold)
    begun = await plane.begin("POST", f"/v1/servers/{house.id}/actions", {"action": "restart"})
    operation = await plane.ended(begun["operation"]["id"], "failed", seconds=60)
    assert operation["errorCode"] == "port_in_use"
    assert "port 80 of the server is held by container squatter" in operation["errorMessage"]
    assert (await plane.get(f"/v1/servers/{house.id}"))["status"] == "running"
    await world.output_of("docker", "exec", house.node, "docker", "rm", "--force", "squatter")
    await plane.do("POST", f"/v1/operations/{operation['id']}/retry")
    async with browsing(shop.url) as browser:
        await until_login(browser)


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


@pytest.mark.fault("27")
async def test_a_server_that_was_removed_behind_our_back_is_told_and_forgotten(plane: Plane) -> None:
    """Case B11: without force it is said that the machine is gone; with force it is forgotten."""
    server, _ = await plane.provision()
    server_id, path = server["id"], f"/v1/servers/{server['id']}"
    instances = []
    for _ in range(2):
        plane.faults.fail("pull_images", when="before")
        instance = await plane.begin("POST", "/v1/instances", plane.instance_body(server_id))
        await plane.ended(instance["operation"]["id"], "failed")
        instances.append(instance["id"])
    assert len(await world.remove_servers([server_id])) == 2

    refused = await plane.client.call("DELETE", path, status=409)
    assert refused["error"]["details"] == {"instances": 2}
    # In the first minute, and not after ten of tries.
    for begin in (
        ("DELETE", f"/v1/instances/{instances[0]}"),
        ("POST", f"{path}/actions", {"action": "stop"}),
    ):
        failed = (await plane.begin(*begin))["operation"]["id"]
        operation = await plane.ended(failed, "failed", seconds=30)
        assert operation["errorCode"] == "node_gone"
        assert "removed outside deployERP" in operation["errorMessage"]
    assert (await plane.get(f"/v1/instances/{instances[0]}"))["status"] == "failed"
    assert (await plane.get(path))["status"] == "failed"

    operation = await plane.do("DELETE", f"/v1/instances/{instances[0]}?force=true")
    assert "removed outside deployERP" in operation["steps"][0]["detail"]
    operation = await plane.do("DELETE", f"{path}?force=true")
    assert "did not have machine" in operation["steps"][0]["detail"]
    for gone in (path, *(f"/v1/instances/{each}" for each in instances)):
        await plane.client.call("GET", gone, status=404)
    await plane.await_webhooks(server_id, ["server.deleted"])
    await plane.await_webhooks(instances[1], ["instance.deleted"])


@pytest.mark.fault("27")
async def test_an_empty_server_that_was_removed_behind_our_back_is_deleted_without_force(
    plane: Plane,
) -> None:
    server, _ = await plane.provision()
    await world.remove_servers([server["id"]])
    operation = await plane.do("DELETE", f"/v1/servers/{server['id']}")
    assert "did not have machine" in operation["steps"][0]["detail"]
    await plane.client.call("GET", f"/v1/servers/{server['id']}", status=404)


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
    await plane.until_step(server["operation"]["id"], "wait_for_ssh", "says nothing")
    refused = await plane.client.call("DELETE", path, status=409)
    assert refused["error"]["code"] == "operation_in_progress"

    await plane.do("DELETE", f"{path}?force=true")
    hanging = await plane.get(operation_path)
    assert (hanging["state"], hanging["errorCode"]) == ("cancelled", "superseded")
    assert await world.left_of_server(server["id"]) == []
