"""Who may do what: every route, every level of keys, and tokens that are none."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlalchemy import select, update
from sqlmodel import col

from deployerp.api.app import ROUTERS, create_app
from deployerp.domain.api_keys import ApiKey, new_api_key
from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.permissions import LEVELS, PERMISSIONS
from deployerp.domain.settings import Settings
from tests.conftest import Client, new_client

OPEN_TO_ALL = {"get_health", "get_readiness"}
# The least level that may call each route.
LEAST = {
    "list_providers": "read",
    "get_provider": "read",
    "create_provider": "write",
    "delete_provider": "delete",
    "list_servers": "read",
    "get_server": "read",
    "create_server": "write",
    "act_on_server": "write",
    "delete_server": "delete",
    "list_instances": "read",
    "get_instance": "read",
    "create_instance": "write",
    "update_instance": "write",
    "reveal_admin_password": "write",
    "act_on_instance": "write",
    "control_instance": "write",
    "delete_instance": "delete",
    "list_operations": "read",
    "get_operation": "read",
    "stream_operation": "read",
    "cancel_operation": "write",
    "retry_operation": "write",
    "list_events": "read",
    "list_webhook_endpoints": "read",
    "get_webhook_endpoint": "read",
    "create_webhook_endpoint": "write",
    "delete_webhook_endpoint": "delete",
    "list_webhook_deliveries": "read",
    "get_webhook_delivery": "read",
}
CALLS = {
    operation["operationId"]: (method.upper(), path)
    for path, operations in create_app(Settings.model_construct()).openapi()["paths"].items()
    for method, operation in operations.items()
}
ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def permissions_of(dependant: Dependant) -> Iterator[str]:
    declared = getattr(dependant.call, "__dict__", {}).get("permission")
    if declared is not None:
        yield declared
    for each in dependant.dependencies:
        yield from permissions_of(each)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_route_declares_one_permission_that_some_level_has(route: APIRoute) -> None:
    declared = list(permissions_of(route.dependant))
    if route.name in OPEN_TO_ALL:
        assert declared == []
    else:
        (permission,) = declared
        assert permission in PERMISSIONS["admin"]


def test_there_is_no_route_besides_those_that_are_checked() -> None:
    assert {route.name for route in ROUTES} == set(CALLS) == set(LEAST) | OPEN_TO_ALL


@one_database
@pytest.mark.parametrize("level", LEVELS)
async def test_a_key_does_what_its_level_includes_and_nothing_else(
    http: httpx.AsyncClient, settings: Settings, level: str
) -> None:
    client = await new_client(http, settings, level)
    for name, least in LEAST.items():
        method, path = CALLS[name]
        answer = await client.request(method, path.format(id=uuid4()), {})
        if LEVELS.index(level) >= LEVELS.index(least):
            assert answer.status_code in (200, 201, 404, 422), (name, answer.text)
        else:
            assert answer.status_code == 403, (name, answer.text)
            error = answer.json()["error"]
            assert error["code"] == "forbidden"
            assert f"`{level}`" in error["message"]


def test_each_level_includes_the_one_below_and_only_admins_touch_keys() -> None:
    for below, above in pairwise(LEVELS):
        assert PERMISSIONS[below] < PERMISSIONS[above]
    assert {each for each in PERMISSIONS["delete"] if each.endswith(":api-keys")} == set()


async def test_a_token_that_is_none_is_refused_in_the_same_words(
    client: Client, sessions: SessionFactory
) -> None:
    async with sessions() as session, session.begin():
        expired, expired_token = new_api_key(client.organization_id, "x", "admin", utc_now())
        revoked, revoked_token = new_api_key(client.organization_id, "x", "admin")
        revoked.revoked_at = utc_now()
        session.add_all([expired, revoked])
    _, unknown_token = new_api_key(client.organization_id, "x", "admin")
    forged = client.token[:-1] + ("a" if client.token[-1] != "a" else "b")
    credentials = {
        "none": None,
        "empty": "",
        "no token": "Bearer",
        "another scheme": f"Basic {client.token}",
        "forged": f"Bearer {forged}",
        "too short": f"Bearer {client.token[:-1]}",
        "too long": f"Bearer {client.token}a",
        "only the id": f"Bearer {client.token.rpartition('_')[0]}",
        "unknown": f"Bearer {unknown_token}",
        "expired": f"Bearer {expired_token}",
        "revoked": f"Bearer {revoked_token}",
        "no key": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.",
        "SQL": "Bearer ' OR 1=1 --",
        "not ASCII": "Bearer erp_live_é",
    }
    told = set()
    for name, given in credentials.items():
        headers = {} if given is None else {"Authorization": given.encode("latin-1")}
        for method, path in (("GET", "/v1/servers"), ("POST", "/v1/servers"), ("GET", "/v1/servers/x")):
            answer = await client.http.request(method, path, headers=headers)
            assert answer.status_code == 401, name
            assert answer.headers["WWW-Authenticate"] == "Bearer", name
            assert client.token not in answer.text
            told.add(str(answer.json()["error"]))
    assert len(told) == 1


async def test_a_revoked_key_is_refused_at_once(client: Client, sessions: SessionFactory) -> None:
    await client.call("GET", "/v1/servers", status=200)
    async with sessions() as session, session.begin():
        await session.execute(update(ApiKey).values(revoked_at=utc_now()))
    await client.call("GET", "/v1/servers", status=401)


async def test_the_last_use_of_a_key_is_known_to_the_minute(client: Client, sessions: SessionFactory) -> None:
    async def last_used() -> object:
        async with sessions() as session:
            return await session.scalar(select(col(ApiKey.last_used_at)))

    assert await last_used() is None
    await client.call("GET", "/v1/servers")
    first = await last_used()
    await client.call("GET", "/v1/servers")
    assert await last_used() == first
    async with sessions() as session, session.begin():
        await session.execute(update(ApiKey).values(last_used_at=utc_now() - timedelta(minutes=2)))
    await client.call("GET", "/v1/servers")
    assert utc_now() - await last_used() < timedelta(seconds=30)
