"""A machine that is not the server we made gets nothing: no login, no second try."""

import re

from deployerp.drivers.server.host import generate_key_pair
from tests.e2e import world
from tests.e2e.conftest import House, Shop
from tests.e2e.plane import Plane, browsing

OTHER_KEY = generate_key_pair("somebody else").public


async def logins(node: str) -> list[str]:
    """What the node's sshd says of attempts to log in; those without a user have not tried."""
    lines = (await world.output_of("docker", "logs", node)).splitlines()
    return [line for line in lines if "root" in line and ("publickey" in line or "authenticating" in line)]


async def connections(node: str) -> set[str]:
    """The ports of those whose connection ended before a login was tried."""
    ended = re.findall(r"port (\d+) \[preauth\]", await world.output_of("docker", "logs", node))
    return set(ended)


async def test_an_operation_refuses_another_machine(plane: Plane, house: House, shop: Shop) -> None:
    pinned = (await plane.server_row(house.id)).host_key
    await plane.change_server(house.id, host_key=OTHER_KEY)
    plane.faults.clear()
    logged_in, connected = await logins(house.node), await connections(house.node)
    assert logged_in, "sshd's log does not show logins, so it cannot show that there was none"
    try:
        operation = await plane.do(
            "POST", f"/v1/instances/{shop.id}/actions", {"action": "restart"}, state="failed"
        )
        assert await logins(house.node) == logged_in
        # The step tried once, and what looks at the instance afterwards tried once.
        assert len(await connections(house.node) - connected) == 2
    finally:
        await plane.change_server(house.id, host_key=pinned)
    assert operation["errorCode"] == "host_key_mismatch"
    assert [step["attempt"] for step in operation["steps"]] == [1]
    tries = [step for step, workflow in plane.faults.attempts if workflow.endswith(operation["id"])]
    assert tries.count("pull_images") == 1
    async with browsing(shop.url) as browser:
        assert await browser.shows_login(), "something was done to the instance all the same"

    await plane.do("POST", f"/v1/operations/{operation['id']}/retry")
    assert (await plane.get(f"/v1/instances/{shop.id}"))["status"] == "running"


async def test_a_provision_refuses_another_machine(plane: Plane) -> None:
    begun = await plane.begin("POST", "/v1/servers", plane.server_body())

    async def somebody_else_answers() -> None:
        await plane.change_server(begun["id"], host_key=OTHER_KEY)

    plane.faults.do("wait_for_ssh", somebody_else_answers)
    operation = await plane.ended(begun["operation"]["id"], "failed")
    assert operation["errorCode"] == "host_key_mismatch"
    assert operation["steps"][-2]["name"] == "wait_for_ssh"
    assert operation["steps"][-2]["attempt"] == 1
    assert await world.left_of_server(begun["id"]) == []
    await plane.delete("servers", begun["id"])
