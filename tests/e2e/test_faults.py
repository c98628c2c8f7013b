"""A step that fails for good leaves nothing behind, whichever step it is."""

import pytest

from deployerp.workflows import instances, servers
from tests.e2e import world
from tests.e2e.conftest import House, Shop, steps_of
from tests.e2e.faults import MESSAGE
from tests.e2e.plane import Plane, step_of

# The lists come from the workflows: a new step is tested by being one.
PROVISION = steps_of(servers._provision)
DEPLOY = steps_of(instances._deploy)


def test_the_lists_are_not_empty() -> None:
    assert {"prepare_keys", "create_node", "start_caddy"} <= set(PROVISION)
    assert {"pull_images", "create_network", "start_odoo", "check_login"} <= set(DEPLOY)


@pytest.mark.parametrize("step", PROVISION)
async def test_a_provision_that_fails_after_a_step_leaves_nothing(plane: Plane, step: str) -> None:
    plane.faults.fail(step)
    begun = await plane.begin("POST", "/v1/servers", plane.server_body())
    await assert_failed(plane, "servers", begun, step)
    assert await world.left_of_server(begun["id"]) == []
    server = await plane.get(f"/v1/servers/{begun['id']}")
    assert server["address"] is None
    await plane.delete("servers", begun["id"])


@pytest.mark.parametrize("step", DEPLOY)
async def test_a_deploy_that_fails_after_a_step_leaves_nothing(
    plane: Plane, house: House, shop: Shop, step: str
) -> None:
    before, routes = await house.contents(), await world.routes_of(house.node)
    plane.faults.fail(step)
    begun = await plane.begin("POST", "/v1/instances", plane.instance_body(house.id))
    await assert_failed(plane, "instances", begun, step)
    # All of the server's engine: also what has lost its label, and nobody else's less.
    assert await house.contents() == before
    assert await world.routes_of(house.node) == routes
    await plane.delete("instances", begun["id"])


async def test_a_deploy_that_failed_late_is_retried(plane: Plane, house: House, shop: Shop) -> None:
    plane.faults.fail("check_login")
    begun = await plane.begin("POST", "/v1/instances", plane.instance_body(house.id))
    failed = await assert_failed(plane, "instances", begun, "check_login")
    await plane.do("POST", f"/v1/operations/{failed['id']}/retry")
    await plane.delete("instances", begun["id"])


async def test_a_provision_that_failed_is_retried(plane: Plane) -> None:
    plane.faults.fail("prepare_host")
    begun = await plane.begin("POST", "/v1/servers", plane.server_body())
    failed = await assert_failed(plane, "servers", begun, "prepare_host")
    await plane.do("POST", f"/v1/operations/{failed['id']}/retry")
    assert len(await world.nodes_of(begun["id"])) == 1
    await plane.delete("servers", begun["id"])
    assert await world.left_of_server(begun["id"]) == []
    lived = [f"server.{each}" for each in ("provision_failed", "created", "deleted")]
    await plane.await_webhooks(begun["id"], lived)


async def test_a_failure_that_may_pass_is_tried_again(plane: Plane, house: House, shop: Shop) -> None:
    plane.faults.fail("start_odoo", retryable=True)
    begun = await plane.begin("POST", "/v1/instances", plane.instance_body(house.id))
    operation = await plane.ended(begun["operation"]["id"])
    step = step_of(operation, "start_odoo")
    assert step is not None
    assert (step["state"], step["attempt"]) == ("succeeded", 2)
    containers = await world.labelled(house.node, begun["id"])
    assert len([each for each in containers if each.startswith("container")]) == 2
    await plane.delete("instances", begun["id"])


async def assert_failed(plane: Plane, resources: str, begun: dict, step: str) -> dict:
    """The operation, failed at the step in words that people understand, and its resource too."""
    operation = await plane.ended(begun["operation"]["id"], "failed")
    assert (operation["errorCode"], operation["errorMessage"]) == ("engine_refused", MESSAGE)
    failed = step_of(operation, step)
    assert failed is not None
    assert (failed["state"], failed["attempt"], failed["detail"]) == ("failed", 1, MESSAGE)
    resource = await plane.get(f"/v1/{resources}/{begun['id']}")
    assert (resource["status"], resource["statusMessage"]) == ("failed", MESSAGE)
    return operation
