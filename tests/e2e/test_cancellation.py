"""A deploy that is cancelled in the middle takes everything back, soon."""

import asyncio
import time

import pytest

from deployerp.workflows import instances
from tests.e2e import world
from tests.e2e.conftest import House, Shop, steps_of
from tests.e2e.plane import Plane, browsing, step_of

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


@pytest.mark.fault("27")
async def test_a_deploy_that_is_cancelled_in_any_step_leaves_nothing_and_can_begin_again(
    plane: Plane, house: House, shop: Shop
) -> None:
    """Case B04: in each step when its work is done, which leaves the most; the next begins at once."""
    before, routes = await house.contents(), await world.routes_of(house.node)
    steps = steps_of(instances._deploy)
    cancel_in(plane, steps[0])
    begun = await plane.begin("POST", "/v1/instances", plane.instance_body(house.id))
    operation_id = begun["operation"]["id"]
    for step, next_step in zip(steps, [*steps[1:], None], strict=True):
        operation = await plane.ended(operation_id, "cancelled")
        ended_in = [each["name"] for each in operation["steps"] if each["name"] != "remove_instance"]
        assert ended_in == steps[: steps.index(step) + 1]
        assert await house.contents() == before, f"cancelled in {step}, it left something behind"
        assert await world.routes_of(house.node) == routes
        if next_step is not None:
            cancel_in(plane, next_step)
        operation_id = (await plane.begin("POST", f"/v1/operations/{operation_id}/retry"))["id"]
    await plane.ended(operation_id)
    instance = await plane.get(f"/v1/instances/{begun['id']}")
    async with browsing(instance["url"]) as browser:
        assert await browser.shows_login()
    await plane.delete("instances", begun["id"])


def cancel_in(plane: Plane, step: str) -> None:
    """Has the operation cancelled at the end of the step, which then waits until it hears of it."""

    async def cancel() -> None:
        _, workflow = plane.faults.attempts[-1]
        path = f"/v1/operations/{workflow.rpartition('.')[2]}/cancel"
        await plane.client.data("POST", path, status=202)
        await asyncio.sleep(30)

    plane.faults.do(step, cancel, when="after")
