"""Instances through the API."""

import asyncio
from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.instances import EnvVar, Instance, open_env_vars
from tests.conftest import Client, Fleet, new_client


async def test_an_instance_is_accepted_with_its_operation(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    body = {
        "name": "Acme Größe ✓",
        "slug": "acme",
        "serverId": server["id"],
        "odooVersion": "19.0",
        "odooEdition": "community",
        "environmentType": "staging",
    }
    answer = await client.request("POST", "/v1/instances", body | {"envVars": {"LANG": "fr_FR.UTF-8"}})
    assert answer.status_code == 202
    instance = answer.json()["data"]
    operation = instance.pop("operation")
    assert answer.headers["Location"] == f"/v1/operations/{operation['id']}"
    assert (operation["state"], operation["action"]) == ("pending", "deploy")
    assert (operation["resourceType"], operation["resourceId"]) == ("instance", instance["id"])
    assert {name: instance[name] for name in body} == body
    assert (instance["hostname"], instance["status"]) == ("acme.localhost", "pending")
    assert instance == await client.data("GET", f"/v1/instances/{instance['id']}")
    assert await client.data("GET", "/v1/instances") == [instance]


async def test_variables_are_accepted_in_both_forms_and_never_shown(
    client: Client, fleet: Fleet, sessions: SessionFactory, settings: Settings
) -> None:
    variables = {"LANG": "C.UTF-8", "TOKEN": {"value": "hunter2hunter2", "secret": True}}
    begun = await fleet.begin_instance((await fleet.server())["id"], envVars=variables)
    answer = await client.request("GET", f"/v1/instances/{begun['id']}")
    assert "hunter2" not in answer.text
    async with sessions() as session:
        instance = await session.get_one(Instance, UUID(begun["id"]))
    kept = open_env_vars(Vault(settings.encryption_keys), instance)
    assert kept == {"LANG": EnvVar("C.UTF-8"), "TOKEN": EnvVar("hunter2hunter2", secret=True)}
    assert "hunter2" not in repr(instance)


async def test_snake_case_is_accepted_too(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    body = {
        "name": "A",
        "slug": "a",
        "server_id": server["id"],
        "odoo_version": "19.0",
        "env_vars": {"A": "1"},
    }
    created = await client.data("POST", "/v1/instances", body, 202)
    assert created["odooVersion"] == "19.0"


async def test_an_instance_needs_a_running_server(client: Client, fleet: Fleet) -> None:
    pending = await fleet.begin_server()
    body = {"name": "A", "slug": "a", "serverId": pending["id"], "odooVersion": "19.0"}
    error = await client.error("POST", "/v1/instances", body, code="invalid_state")
    assert error["details"] == {"status": "pending"}
    server = await fleet.settled(pending)
    instance = await fleet.instance(server["id"])
    await fleet.end(await client.data("POST", f"/v1/servers/{server['id']}/actions", {"action": "stop"}))
    path = f"/v1/instances/{instance['id']}/actions"
    await client.error("POST", path, {"action": "restart"}, code="invalid_state")


async def test_a_host_name_belongs_to_one_instance_everywhere(
    client: Client, fleet: Fleet, settings: Settings
) -> None:
    first = await fleet.instance((await fleet.server())["id"], "acme")
    other = Fleet(await new_client(client.http, settings), fleet.records)
    server = await other.server()
    body = {"name": "A", "slug": "acme", "serverId": server["id"], "odooVersion": "19.0"}
    error = await other.client.error("POST", "/v1/instances", body, code="conflict")
    assert error["details"] == {"field": "slug"}
    await fleet.end(await client.data("DELETE", f"/v1/instances/{first['id']}"))
    await other.client.call("POST", "/v1/instances", body, 202)


async def test_actions_and_their_alias_take_an_instance_on_its_way_and_back(
    client: Client, fleet: Fleet
) -> None:
    instance = await fleet.instance((await fleet.server())["id"])
    for tail in ("actions", "control"):
        for action, on_its_way, end in (
            ("stop", "stopping", "stopped"),
            ("start", "starting", "running"),
            ("restart", "restarting", "running"),
        ):
            path = f"/v1/instances/{instance['id']}/{tail}"
            answer = await client.request("POST", path, {"action": action})
            assert answer.status_code == 202
            begun = answer.json()["data"]
            assert answer.headers["Location"] == f"/v1/operations/{begun['operation']['id']}"
            assert begun["status"] == on_its_way
            await client.error("POST", path, {"action": action}, code="operation_in_progress")
            assert (await fleet.settled(begun))["status"] == end


async def test_only_the_name_can_be_changed(client: Client, fleet: Fleet) -> None:
    instance = await fleet.instance((await fleet.server())["id"])
    path = f"/v1/instances/{instance['id']}"
    changed = await client.data("PATCH", path, {"name": "  New name "})
    assert changed == instance | {"name": "New name", "updatedAt": changed["updatedAt"]}
    assert changed["updatedAt"] > instance["updatedAt"]
    assert await client.data("GET", path) == changed
    for field in ("slug", "odooVersion", "status", "hostname"):
        error = await client.error("PATCH", path, {"name": "B", field: "x"}, code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == [field]
    assert await client.data("GET", path) == changed


async def test_a_deleted_instance_is_gone(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    instance = await fleet.instance(server["id"])
    path = f"/v1/instances/{instance['id']}"
    begun = await client.data("DELETE", path, status=202)
    assert (begun["status"], begun["operation"]["action"]) == ("deleting", "delete")
    await fleet.end(begun)
    for method, tail, body in (
        ("GET", "", None),
        ("PATCH", "", {"name": "x"}),
        ("DELETE", "", None),
        ("POST", "/actions", {"action": "start"}),
        ("POST", "/admin-password", None),
    ):
        await client.error(method, path + tail, body, code="not_found")
    assert await client.data("GET", "/v1/instances") == []
    await client.call("DELETE", f"/v1/servers/{server['id']}", status=202)


async def test_the_admin_password_can_be_read_once(
    client: Client, fleet: Fleet, sessions: SessionFactory
) -> None:
    begun = await fleet.begin_instance((await fleet.server())["id"])
    path = f"/v1/instances/{begun['id']}/admin-password"
    await client.error("POST", path, code="conflict")
    await fleet.settled(begun)
    told = await client.data("POST", path)
    assert told["login"] == "admin"
    assert len(told["password"]) == 24
    error = await client.error("POST", path, code="conflict")
    assert told["password"] not in str(error)
    async with sessions() as session:
        kept = select(func.count()).where(col(Instance.sealed_admin_password).is_not(None))
        assert await session.scalar(kept) == 0


async def test_of_many_readers_of_the_admin_password_one_gets_it(client: Client, fleet: Fleet) -> None:
    instance = await fleet.instance((await fleet.server())["id"])
    path = f"/v1/instances/{instance['id']}/admin-password"
    answers = await asyncio.gather(*(client.request("POST", path) for _ in range(20)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 19}


@pytest.mark.fault("6")
async def test_a_deletion_by_force_takes_the_place_of_an_operation_that_does_not_end(fleet: Fleet) -> None:
    server = await fleet.server()
    begun = await fleet.begin_instance(server["id"])
    path = f"/v1/instances/{begun['id']}"
    await fleet.client.error("DELETE", path, code="operation_in_progress")
    await fleet.client.call("DELETE", f"{path}?force=true", status=202)
    deploy = await fleet.client.data("GET", f"/v1/operations/{begun['operation']['id']}")
    assert (deploy["state"], deploy["errorCode"]) == ("cancelled", "superseded")
    await fleet.client.error("DELETE", f"{path}?force=true", code="operation_in_progress")
