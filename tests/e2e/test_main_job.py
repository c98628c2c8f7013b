"""The product's job through the REST API, as a client does it."""

import json
from datetime import datetime
from typing import Any

import httpx

from deployerp.domain.operations.steps import STEPS
from deployerp.workflows import instances, servers
from tests.e2e import world
from tests.e2e.conftest import House, Shop, steps_of
from tests.e2e.plane import OPEN, Plane, browsing


def assert_told_in_full(operation: dict[str, Any], names: list[str]) -> None:
    """Each step has its title and its times, in order."""
    assert [step["name"] for step in operation["steps"]] == names
    moments = [datetime.fromisoformat(operation["startedAt"])]
    for step in operation["steps"]:
        assert step["title"] == STEPS[step["name"]]
        assert (step["state"], step["attempt"]) == ("succeeded", 1)
        moments += [datetime.fromisoformat(step[key]) for key in ("startedAt", "finishedAt")]
    moments.append(datetime.fromisoformat(operation["finishedAt"]))
    assert moments == sorted(moments)


async def test_a_server_is_provisioned(plane: Plane, house: House) -> None:
    server = await plane.get(f"/v1/servers/{house.id}")
    assert server["status"] == "running"
    assert server["hostKey"].startswith("ssh-ed25519 ")
    assert server["engineVersion"]
    assert_told_in_full(house.operation, steps_of(servers._provision))
    details = {step["name"]: step["detail"] for step in house.operation["steps"]}
    assert house.node in details["create_node"]
    assert server["engineVersion"] in details["check_engine"]
    assert "container deployerp-caddy" in await house.contents()
    # The one volume it has is labelled: there is none without a name, which nobody would find again.
    mounts = await world.output_of("docker", "inspect", "-f", "{{json .Mounts}}", house.node)
    volumes = [mount["Name"] for mount in json.loads(mounts) if mount["Type"] == "volume"]
    assert sorted([house.node, *volumes]) == await world.left_of_server(house.id)


async def test_an_instance_lives_its_life(plane: Plane, house: House, shop: Shop) -> None:
    assert_told_in_full(shop.operation, steps_of(instances._deploy))
    path = f"/v1/instances/{shop.id}"
    async with browsing(shop.url) as browser:
        assert await browser.shows_login()

        shown = await plane.client.data("POST", f"{path}/admin-password")
        plane.secrets.append(shown["password"])
        await plane.client.call("POST", f"{path}/admin-password", status=409)
        assert await browser.sign_in("admin") is None, "the prepared database's own password still works"
        assert await browser.sign_in(shown["password"])
        (partner,) = await browser.call("res.partner", "create", [{"name": "Kept over a restart"}])

        await plane.act("instances", shop.id, "stop")
        assert (await browser.get("/web/login"))[0] != 200
        running = await world.output_of(
            *("docker", "exec", house.node, "docker", "ps", "--format", "{{.Names}}"),
            *("--filter", f"label=deployerp.instance={shop.id}"),
        )
        assert running == ""
        await plane.act("instances", shop.id, "start")
        assert await browser.shows_login()
        await plane.act("instances", shop.id, "restart")
        # Cookie and all: the session lives in the filestore, the partner in the database.
        read = await browser.call("res.partner", "read", [partner], ["name"])
        assert read[0]["name"] == "Kept over a restart"
    assert (await plane.get(path))["status"] == "running"
    lived = [f"instance.{each}" for each in ("deployed", "stopped", "started", "restarted")]
    await plane.await_webhooks(shop.id, lived)


async def test_progress_is_streamed_and_webhooks_arrive(plane: Plane, house: House) -> None:
    before = await house.contents()
    begun = await plane.begin("POST", "/v1/instances", plane.instance_body(house.id))
    seen = await streamed(plane, begun["operation"]["id"])
    assert seen[-1]["state"] == "succeeded"
    # Live: each step was seen while it ran or at least before the next had ended.
    assert len({len(operation["steps"]) for operation in seen}) > len(seen[-1]["steps"]) / 2
    assert any(operation["state"] in OPEN for operation in seen)

    await plane.delete("instances", begun["id"])
    assert await world.labelled(house.node, begun["id"]) == set()
    assert begun["id"] not in await world.routes_of(house.node)
    assert before <= await house.contents()
    assert {each for each in await house.contents() - before if "prepared" not in each} == set()

    await plane.await_webhooks(begun["id"], ["instance.deployed", "instance.deleted"])
    log = await plane.client.data("GET", "/v1/events?per_page=100")
    assert [each["sequence"] for each in log] == list(range(1, len(log) + 1))


async def streamed(plane: Plane, operation_id: str) -> list[dict[str, Any]]:
    """The operation at each of its changes, as its stream tells them."""
    seen = []
    headers = {"Authorization": f"Bearer {plane.client.token}"}
    # A client of its own: the shared one reads answers whole, and this one comes bit by bit.
    async with (
        httpx.AsyncClient(base_url=plane.client.http.base_url, timeout=60) as http,
        http.stream("GET", f"/v1/operations/{operation_id}/events", headers=headers) as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                plane.answers.append(line)
                seen.append(json.loads(line.removeprefix("data: ")))
    return seen
