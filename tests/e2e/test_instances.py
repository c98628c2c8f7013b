"""Instances beside each other on one server."""

import asyncio
import json

import pytest

from tests.e2e import world
from tests.e2e.conftest import House, Shop
from tests.e2e.plane import SECRET_VARIABLE, Plane, browsing, seconds_of, step_of
from tests.variables import AWKWARD_VARIABLES

OF_ITS_OWN = ("database.uuid", "database.secret")


async def identity(house: House, instance_id: str) -> dict[str, str]:
    """What tells a database from its siblings: parameters, the role's and the administrator's password."""
    names = ", ".join(f"'{name}'" for name in OF_ITS_OWN)
    queries = {
        "odoo": f"SELECT key, value FROM ir_config_parameter WHERE key IN ({names})"
        " UNION SELECT 'admin', password FROM res_users WHERE login = 'admin'",
        "postgres": "SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL",
    }
    found: dict[str, str] = {}
    for database, query in queries.items():
        rows = await world.output_of(
            *("docker", "exec", house.node, "docker", "exec", "-u", "postgres"),
            *(f"deployerp-{instance_id}-postgres", "psql", "-Atd", database, "-c", query),
        )
        found |= dict(row.split("|", 1) for row in rows.splitlines())
    return found


async def test_two_deploys_at_once_copy_what_the_first_has_made(
    plane: Plane, house: House, shop: Shop
) -> None:
    deployed = await asyncio.gather(plane.deploy(house.id), plane.deploy(house.id))
    first = step_of(shop.operation, "prepare_database")
    assert first is not None
    for _, operation in deployed:
        step = step_of(operation, "prepare_database")
        assert step is not None
        assert step["detail"] == "There is one to copy"
        assert seconds_of(step) < seconds_of(first) / 5
        assert seconds_of(operation) < seconds_of(shop.operation)
    identities = [await identity(house, each) for each in (shop.id, *(one["id"] for one, _ in deployed))]
    assert identities[0].keys() == {*OF_ITS_OWN, "admin", "odoo", "postgres"}
    for name in identities[0]:
        assert len({each[name] for each in identities}) == 3, f"{name} is not the instance's own"
    for instance, _ in deployed:
        async with browsing(instance["url"]) as browser:
            assert await browser.shows_login()
    await asyncio.gather(*(plane.delete("instances", one["id"]) for one, _ in deployed))
    async with browsing(shop.url) as browser:
        assert await browser.shows_login()


async def test_a_secret_variable_reaches_odoo_and_nobody_else(plane: Plane, house: House, shop: Shop) -> None:
    odoo = f"deployerp-{shop.id}-odoo-blue"
    environment = await world.output_of(
        "docker", "exec", house.node, "docker", "exec", odoo, "sh", "-c", "echo $E2E_PLAIN $E2E_SECRET"
    )
    assert environment.split() == ["seen", SECRET_VARIABLE]


async def variables(house: House, shop: Shop) -> dict[str, str]:
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    odoo = f"deployerp-{shop.id}-odoo-blue"
    printed = await world.output_of(
        "docker", "exec", house.node, "docker", "exec", odoo, "python3", "-c", script
    )
    return {name: value for name, value in json.loads(printed).items() if name in AWKWARD_VARIABLES}


@pytest.mark.fault("27")
async def test_variables_reach_each_container_of_odoo_byte_for_byte(
    plane: Plane, house: House, shop: Shop
) -> None:
    """Case R02: as they were given, also after a restart and in another container."""
    assert await variables(house, shop) == AWKWARD_VARIABLES
    await plane.act("instances", shop.id, "restart")
    assert await variables(house, shop) == AWKWARD_VARIABLES
    odoo = f"deployerp-{shop.id}-odoo-blue"
    await world.output_of("docker", "exec", house.node, "docker", "rm", "--force", odoo)
    await plane.act("instances", shop.id, "restart")
    assert await variables(house, shop) == AWKWARD_VARIABLES
    async with browsing(shop.url) as browser:
        assert await browser.shows_login()


async def test_an_instance_is_removed_though_somebody_stopped_the_proxy(
    plane: Plane, house: House, shop: Shop
) -> None:
    instance, _ = await plane.deploy(house.id)
    await world.output_of("docker", "exec", house.node, "docker", "stop", "deployerp-caddy")
    await plane.delete("instances", instance["id"])
    assert instance["id"] not in await world.routes_of(house.node)
    assert await world.labelled(house.node, instance["id"]) == set()
