"""An endpoint that is declared old says so with every answer, and in the document."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response

from deployerp.api.app import create_app, open_context
from deployerp.api.contract.changes import ChangeDep
from deployerp.api.contract.errors import documented
from deployerp.api.contract.routes import NOTICE, Route, deprecated, needs
from deployerp.api.contract.schemas import Envelope
from deployerp.api.servers import ServerRead
from deployerp.core.errors import NotFound
from deployerp.core.settings import Settings
from deployerp.domain.providers import Provider
from tests.conftest import Client, new_client

SINCE = datetime(2026, 11, 21, 12, tzinfo=UTC)
GUIDE = "https://example.com/migrate"
old = deprecated(SINCE, datetime(2027, 6, 1, tzinfo=UTC), GUIDE)
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def old_router() -> APIRouter:
    router = APIRouter(prefix="/v1/machines", tags=["servers"], route_class=Route)

    @router.get("/{number}", responses=documented(), response_model=Envelope[ServerRead])
    @needs("read:servers")
    @old
    async def get_machine(number: int) -> Response:
        if number == 404:
            raise NotFound("There is no machine 404.")
        if number == 500:
            raise RuntimeError("It broke.")
        return Response("{}", headers={"Link": "</v1/machines>; rel=first"})

    @router.post("", responses=documented(), response_model=Envelope[ServerRead])
    @needs("manage:servers")
    @old
    async def create_machine(change: ChangeDep) -> Response:
        sealed = change.shared.vault.seal_mapping({})
        organization_id = change.caller.organization_id
        await change.add(
            Provider(organization_id=organization_id, name="x", kind="docker", sealed_credentials=sealed)
        )
        return change.answer({})

    return router


def app_with_old_routes(settings: Settings) -> FastAPI:
    app = create_app(settings)
    app.router.routes.extend(old_router().routes)
    return app


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = app_with_old_routes(settings)
    async with open_context(settings) as app.state.context:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
            yield http


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with opened(settings) as http:
        yield http


def check(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers.get_list("Deprecation") == [f"@{int(SINCE.timestamp())}"]
    assert answer.headers.get_list("Sunset") == ["Tue, 01 Jun 2027 00:00:00 GMT"]
    assert f'<{GUIDE}>; rel="deprecation"; type="text/html"' in answer.headers.get_list("Link")


@one_database
async def test_every_answer_of_an_old_endpoint_says_so(client: Client, settings: Settings) -> None:
    reader = await new_client(client.http, settings, "read")
    for path, status in (("1", 200), ("404", 404), ("x", 422), ("500", 500)):
        check(await client.request("GET", f"/v1/machines/{path}"), status)
    check(await client.http.get("/v1/machines/1"), 401)
    check(await reader.request("POST", "/v1/machines"), 403)
    key = {"Idempotency-Key": "once"}
    for replayed in (None, "true"):
        answer = await client.request("POST", "/v1/machines", headers=key)
        check(answer, 200)
        assert answer.headers.get("Idempotent-Replayed") == replayed
    answer = await client.request("GET", "/v1/machines/1")
    assert answer.headers.get_list("Link")[0] == "</v1/machines>; rel=first"


@one_database
async def test_others_do_not(client: Client) -> None:
    await client.request("GET", "/v1/machines/1")
    for path in ("/", "/v1/servers", "/v1/servers/x"):
        answer = await client.request("GET", path)
        assert {"Deprecation", "Sunset"}.isdisjoint(answer.headers)


def test_the_document_says_so_too() -> None:
    paths = app_with_old_routes(Settings.model_construct()).openapi()["paths"]
    told = {
        each["operationId"] for every in paths.values() for each in every.values() if each.get("deprecated")
    }
    assert told == {"get_machine", "create_machine"}


def test_every_path_of_the_contract_says_its_version() -> None:
    paths = create_app(Settings.model_construct()).openapi()["paths"]
    # Besides the front page, and what machines ask that know no version.
    assert {path.split("/")[1] for path in paths} - {"v1"} == {"", "healthz", "readyz"}


def test_clients_get_half_a_year() -> None:
    assert timedelta(days=180) <= NOTICE
    with pytest.raises(ValueError, match="180 days"):
        deprecated(SINCE, SINCE + NOTICE - timedelta(seconds=1), GUIDE)
    deprecated(SINCE, SINCE + NOTICE, GUIDE)
