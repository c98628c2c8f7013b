"""Who may do what: every route, every level of keys, every role of users, and tokens that are none."""

from dataclasses import replace
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter
from starlette.routing import BaseRoute

from deployerp.api.app import create_app
from deployerp.api.contract.routes import PUBLIC, Route, needs
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.api_keys import new_api_key
from deployerp.domain.permissions import LEVEL_PERMISSIONS, LEVELS, PERMISSIONS, ROLE_PERMISSIONS, ROLES
from tests.api.calls import GUARDED, Ask, Call
from tests.api.people import person
from tests.conftest import Client, new_client

# Asked by whoever is not signed in yet, or may be anybody who is; or no more than the contract itself.
OPEN_TO_ALL = {
    "create_token",
    "refresh_token",
    "revoke_token",
    "set_password",
    "get_me",
    "change_own_password",
    "get_event_types",
}
# What is served besides: the contract, and the playground that reads it.
PAGES = {"openapi.json", "playground", "docs", "static-offline-docs"}
VERBS = {"GET": "read", "POST": "manage", "PATCH": "manage", "DELETE": "delete"}
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def routes() -> list[BaseRoute]:
    return list(create_app(Settings.model_construct()).routes)


def undeclared(every: list[BaseRoute]) -> list[str]:
    """The routes under /v1 that ask for nothing that there is."""
    return [route.path for route in every if route.path.startswith("/v1") and not is_declared(route)]


def is_declared(route: BaseRoute) -> bool:
    permission = getattr(route, "permission", None)
    return permission in PERMISSIONS or (permission == PUBLIC and route.name in OPEN_TO_ALL)


def test_every_route_asks_for_a_permission_that_there_is() -> None:
    assert undeclared(routes()) == []


def test_nobody_is_let_in_but_where_it_is_written_here() -> None:
    public = {route.name for route in routes() if getattr(route, "permission", None) == PUBLIC}
    assert public == OPEN_TO_ALL | {"get_root", "get_health", "get_readiness"}
    assert {route.path.split("/")[1] for route in routes() if not isinstance(route, Route)} <= PAGES


def test_the_document_hides_no_route() -> None:
    guarded = {route.name for route in routes() if isinstance(route, Route) and route.permission != PUBLIC}
    assert guarded == {call.name for call in GUARDED}


@pytest.mark.parametrize("call", GUARDED, ids=lambda call: call.name)
def test_what_a_route_asks_for_follows_from_its_method_and_its_place(call: Call) -> None:
    assert call.permission == f"{VERBS[call.method]}:{call.path.split('/')[2]}"


def test_a_route_that_asks_for_nothing_cannot_be_declared() -> None:
    router = APIRouter(prefix="/v1/secrets", route_class=Route)

    async def list_secrets() -> None: ...

    with pytest.raises(TypeError, match="list_secrets must declare `@needs"):
        router.get("")(list_secrets)
    router.get("")(needs("read:secrets")(list_secrets))
    assert undeclared(router.routes) == ["/v1/secrets"]


def test_a_route_of_the_framework_s_own_kind_is_found() -> None:
    router = APIRouter(prefix="/v1/secrets")
    router.get("")(lambda: None)
    assert undeclared(router.routes) == ["/v1/secrets"]


async def answers(client: Client) -> dict[str, tuple[int, dict]]:
    """By the operation, the status and the error of a request about something that nobody has."""
    found = {}
    for call in GUARDED:
        body: dict[str, object] | None = {} if "requestBody" in call.described else None
        answer = await client.request(call.method, Ask(str(uuid4())).path(call), body)
        assert answer.status_code in (200, 403, 404, 422), (call.name, answer.text)
        told = answer.json() if answer.headers["Content-Type"] == "application/json" else {}
        found[call.name] = (answer.status_code, told.get("error", {}))
    return found


def check(told: dict[str, tuple[int, dict]], permissions: frozenset[str], held: str) -> None:
    for call in GUARDED:
        status, error = told[call.name]
        assert (status != 403) is (call.permission in permissions), (call.name, status, error)
        if status == 403:
            assert error["code"] == "forbidden"
            assert error["details"] == {"permission": call.permission}
            assert f"`{call.permission}`" in error["message"]
            assert held in error["message"]


@one_database
@pytest.mark.parametrize("level", LEVELS)
async def test_a_key_does_what_its_level_includes_and_nothing_else(
    http: httpx.AsyncClient, settings: Settings, level: str
) -> None:
    client = await new_client(http, settings, level)
    check(await answers(client), LEVEL_PERMISSIONS[level], f"level `{level}`")


@one_database
@pytest.mark.parametrize("role", ROLES)
async def test_a_user_does_what_their_role_includes_and_nothing_else(
    client: Client, sessions: SessionFactory, role: str
) -> None:
    user = await person(client, sessions, role)
    check(await answers(user), ROLE_PERMISSIONS[role], f"role `{role}`")


@one_database
async def test_whoever_is_nobody_may_do_nothing(client: Client) -> None:
    nobody = replace(client, token="")
    for call in GUARDED:
        answer = await nobody.request(call.method, Ask(str(uuid4())).path(call), {})
        assert answer.status_code == 401, (call.name, answer.text)
        assert answer.json()["error"]["code"] == "unauthorized"


@one_database
async def test_what_is_refused_is_not_looked_at(http: httpx.AsyncClient, settings: Settings) -> None:
    """Who may not do a thing learns nothing about it, not even what a right request would be."""
    reader = await new_client(http, settings, "read")
    for call in GUARDED:
        if call.permission not in LEVEL_PERMISSIONS["read"]:
            answer = await reader.request(call.method, Ask("no id").path(call), {"unknown": 1})
            assert answer.status_code == 403, (call.name, answer.text)


@pytest.fixture
async def credentials(client: Client, sessions: SessionFactory) -> dict[str, str]:
    """What is sent in place of a token that is good."""
    async with sessions() as session, session.begin():
        expired, expired_token = new_api_key(client.organization_id, "x", "admin", utc_now())
        revoked, revoked_token = new_api_key(client.organization_id, "x", "admin")
        revoked.revoked_at = utc_now()
        session.add_all([expired, revoked])
    _, unknown_token = new_api_key(client.organization_id, "x", "admin")
    other = "a" if client.token[-1] != "a" else "b"
    return {
        "empty": "",
        "no token": "Bearer",
        "another scheme": f"Basic {client.token}",
        "forged": f"Bearer {client.token[:-1]}{other}",
        "too short": f"Bearer {client.token[:-1]}",
        "too long": f"Bearer {client.token}a",
        "only the id": f"Bearer {client.token.rpartition('_')[0]}",
        "two": f"Bearer {client.token} {client.token}",
        "unknown": f"Bearer {unknown_token}",
        "expired": f"Bearer {expired_token}",
        "revoked": f"Bearer {revoked_token}",
        "unsigned": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.",
        "SQL": "Bearer ' OR 1=1 --",
        "not ASCII": "Bearer dep_live_é",
    }


async def test_a_token_that_is_none_is_refused_in_the_same_words(
    client: Client, credentials: dict[str, str]
) -> None:
    told = set()
    for name, given in {"none": None, **credentials}.items():
        headers = {} if given is None else {"Authorization": given.encode("latin-1")}
        challenge = "Bearer" if given is None else 'Bearer error="invalid_token"'
        for method, path in (("GET", "/v1/servers"), ("POST", "/v1/servers"), ("GET", "/v1/servers/x")):
            answer = await client.http.request(method, path, headers=headers)
            assert answer.status_code == 401, name
            assert answer.headers.get_list("WWW-Authenticate") == [challenge], name
            assert client.token not in answer.text
            told.add(str(answer.json()["error"]))
    assert len(told) == 1


@one_database
async def test_the_scheme_is_read_in_any_case(client: Client) -> None:
    for scheme in ("bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {client.token}"}
        assert (await client.http.get("/v1/servers", headers=headers)).status_code == 200
