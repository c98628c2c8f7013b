"""A worker killed in the middle of its work; another one takes it up."""

import asyncio

import pytest

from tests.e2e import world
from tests.e2e.conftest import House
from tests.e2e.plane import Plane, browsing, seconds_of, step_of

# Several operations, each cut in a step of its own, because most of the time is waiting for the server to
# notice that a worker is dead; one that is killed early is not to be killed again, so servers come last.
CUTS = [
    [("instances", "prepare_database"), ("servers", "create_node")],
    [("instances", "create_volumes"), ("instances", "start_odoo"), ("servers", "start_caddy")],
]
# Where the killing hurts most: the container that there is by then.
MIDDLE = {"prepare_database": "-odoo-", "create_volumes": "-filestore.copy"}
PARTS = ["container"] * 2 + ["network"] + ["volume"] * 2


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: "-".join(step for _, step in cuts))
async def test_a_killed_worker_is_taken_over(plane: Plane, house: House, cuts: list[tuple[str, str]]) -> None:
    if ("instances", "prepare_database") in cuts:
        await house.unprepare()
    before = await house.contents()
    made = []
    async with plane.worker.elsewhere() as worker:
        for resources, step in cuts:
            await worker.start()
            body = plane.server_body() if resources == "servers" else plane.instance_body(house.id)
            begun = await plane.begin("POST", f"/v1/{resources}", body)
            await plane.until_step(begun["operation"]["id"], step)
            if step in MIDDLE:
                await until_there(house, begun["id"] + MIDDLE[step])
            await worker.kill()
            made.append((resources, begun["id"], step, begun["operation"]["id"]))
        await worker.start()
        for _, _, step, operation_id in made:
            operation = await plane.ended(operation_id)
            interrupted = step_of(operation, step)
            assert interrupted is not None
            assert interrupted["attempt"] > 1, f"the kill came too late for {step}"
            print(f"killed in {step}: {seconds_of(operation):.1f} s in all")  # noqa: T201

    for resources, resource_id, _, _ in made:
        if resources == "servers":
            assert len(await world.nodes_of(resource_id)) == 1
        else:
            parts = await world.labelled(house.node, resource_id)
            assert sorted(each.split()[0] for each in parts) == PARTS
            async with browsing((await plane.get(f"/v1/instances/{resource_id}"))["url"]) as browser:
                assert await browser.shows_login()
        await plane.delete(resources, resource_id)
        assert await world.left_of_server(resource_id) == []
    strange = await house.contents() ^ before
    assert {each for each in strange if "prepared" not in each} == set()


async def until_there(house: House, name: str) -> None:
    async with asyncio.timeout(60):
        while not any(name in each for each in await house.contents()):
            await asyncio.sleep(0.02)
