"""Another organization's objects do not exist: every route with an id, from the OpenAPI document."""

import re
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from deployerp.api.app import create_app
from deployerp.domain.database import SessionFactory, metadata
from deployerp.domain.settings import Settings
from tests.conftest import Client, Fleet, new_client

PATHS = create_app(Settings.model_construct()).openapi()["paths"]
ROUTES = [(method.upper(), path, each) for path, every in PATHS.items() for method, each in every.items()]
WITH_ID = [route for route in ROUTES if "{" in route[1]]
LISTS = [
    route for route in ROUTES if route[0] == "GET" and "{" not in route[1] and route[1].startswith("/v1/")
]
# What each route that takes a body would accept of its owner.
BODIES: dict[str, Any] = {
    "act_on_server": {"action": "restart"},
    "act_on_instance": {"action": "restart"},
    "control_instance": {"action": "restart"},
    "update_instance": {"name": "Mine now"},
}


@pytest.fixture
async def ids(client: Client, fleet: Fleet) -> dict[str, str]:
    """One object of each kind, by the resource's name in the path."""
    endpoint = await client.data("POST", "/v1/webhook-endpoints", {"url": "https://example.com/"})
    server = await fleet.server()
    instance = await fleet.instance(server["id"])
    stop = await client.data("POST", f"/v1/instances/{instance['id']}/actions", {"action": "stop"})
    await fleet.end(stop, "failed")
    (delivery, *_) = await client.data("GET", "/v1/webhook-deliveries")
    return {
        "providers": server["providerId"],
        "servers": server["id"],
        "instances": instance["id"],
        "operations": stop["operation"]["id"],
        "webhook-endpoints": endpoint["id"],
        "webhook-deliveries": delivery["id"],
    }


async def everything(sessions: SessionFactory) -> dict[str, list]:
    """All rows of all tables but the keys', whose last use may change."""
    async with sessions() as session:
        return {
            table.name: sorted(map(repr, await session.execute(select(table))))
            for table in metadata.sorted_tables
            if table.name != "api_keys"
        }


async def test_every_route_with_an_id_knows_only_its_own_organizations(
    ids: dict[str, str], client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    stranger = await new_client(client.http, settings)
    before = await everything(sessions)
    for method, path, operation in WITH_ID:
        resource = re.fullmatch(r"/v1/([a-z-]+)/\{id\}(/[a-z-]+)?", path)
        assert resource, f"{path}: say here what its ids are"
        body = BODIES[operation["operationId"]] if "requestBody" in operation else None
        told = set()
        for known in (ids[resource[1]], str(uuid4())):
            answer = await stranger.request(method, path.replace("{id}", known), body)
            assert answer.status_code == 404, f"{method} {path}: {answer.text}"
            told.add(str(answer.json()["error"]).replace(known, "ID"))
        assert len(told) == 1, f"{method} {path} answers differently for what there is: {told}"
    assert await everything(sessions) == before


async def test_the_owner_finds_what_the_stranger_does_not(ids: dict[str, str], client: Client) -> None:
    for _, path, _ in [route for route in WITH_ID if route[0] == "GET"]:
        resource = path.split("/")[2]
        answer = await client.request("GET", path.replace("{id}", ids[resource]))
        assert answer.status_code == 200, path


async def test_lists_hold_only_their_own_organizations(
    ids: dict[str, str], client: Client, settings: Settings
) -> None:
    stranger = await new_client(client.http, settings)
    for _, path, _ in LISTS:
        assert await client.data("GET", path) != [], path
        assert await stranger.data("GET", path) == [], path


async def test_nothing_is_built_on_what_another_organization_has(
    ids: dict[str, str], client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    stranger = await new_client(client.http, settings)
    before = await everything(sessions)
    server = {"name": "x", "providerId": ids["providers"], "size": "small"}
    await stranger.error("POST", "/v1/servers", server, code="not_found")
    instance = {"name": "x", "slug": "x", "serverId": ids["servers"], "odooVersion": "19.0"}
    await stranger.error("POST", "/v1/instances", instance, code="not_found")
    assert await everything(sessions) == before


async def test_organizations_name_things_as_they_like(
    ids: dict[str, str], client: Client, fleet: Fleet, settings: Settings
) -> None:
    stranger = Fleet(await new_client(client.http, settings), fleet.records)
    server = await stranger.server("one")
    assert server["name"] == (await client.data("GET", f"/v1/servers/{ids['servers']}"))["name"]
    (event,) = await stranger.client.data("GET", "/v1/events")
    assert event["sequence"] == 1
