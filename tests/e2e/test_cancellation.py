"""A deploy that is cancelled in the middle takes everything back, soon."""

import time

from tests.e2e import world
from tests.e2e.conftest import House, Shop
from tests.e2e.plane import Plane, step_of

# A step hears of it with its next heartbeat, and then there are containers to remove.
SOON_SECONDS = 8


async def test_a_deploy_is_cancelled_while_it_prepares_a_database(plane: Plane, house: House) -> None:
    await house.unprepare()
    await assert_cancelled(plane, house, "prepare_database", "Odoo fills it")


async def test_a_deploy_is_cancelled_while_odoo_starts(plane: Plane, house: House, shop: Shop) -> None:
    await assert_cancelled(plane, house, "wait_for_odoo")


async def assert_cancelled(plane: Plane, house: House, step: str, detail: str = "") -> None:
    before, routes = await house.contents(), await world.routes_of(house.node)
    begun = await plane.begin("POST", "/v1/instances", plane.instance_body(house.id))
    operation_id = begun["operation"]["id"]
    await plane.until_step(operation_id, step, detail)
    cancelled_at = time.monotonic()
    await plane.client.data("POST", f"/v1/operations/{operation_id}/cancel", status=202)
    operation = await plane.ended(operation_id, "cancelled")
    seconds = time.monotonic() - cancelled_at
    print(f"cancelled in {seconds:.1f} s")  # noqa: T201
    assert seconds < SOON_SECONDS

    # It may have been done before it heard of it; the one after it must not have begun.
    assert [each["name"] for each in operation["steps"]][-2:] == [step, "remove_instance"]
    assert step_of(operation, "remove_instance")["state"] == "succeeded"
    assert await house.contents() == before
    assert await world.routes_of(house.node) == routes
    instance = await plane.get(f"/v1/instances/{begun['id']}")
    assert instance["status"] == "failed"
    assert "cancelled" in instance["statusMessage"]
    await plane.delete("instances", begun["id"])
