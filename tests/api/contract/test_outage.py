"""Temporal is down when a request comes in: it is accepted, soon, and waits for the sweep."""

import socket
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from deployerp.activities.records import Records
from deployerp.api.contract.errors import away
from deployerp.core.settings import Settings
from deployerp.database.base import new_id
from deployerp.database.connections import LIMITS
from deployerp.database.sessions import SessionFactory, open_database
from deployerp.domain.api_keys import new_api_key
from deployerp.drivers.temporal import Temporal
from tests.conftest import Client, Fleet, free_port, new_client, open_api

# What a call to Temporal may take, and a little for a busy machine.
SOON = 5.0
hangs = pytest.mark.parametrize(
    ("without", "database_url"), [("hangs", "sqlite")], ids=["hangs"], indirect=True
)


@pytest.fixture
def without(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings with the address of a Temporal that refuses connections, or accepts them and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hanging = getattr(request, "param", "refuses") == "hangs"
        port = listener.getsockname()[1] if hanging else free_port()
        yield settings.model_copy(update={"temporal_address": f"127.0.0.1:{port}"})


@pytest.fixture
async def http(without: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with open_api(without, settled=False) as opened:
        yield opened


@pytest.fixture
async def fleet(http: httpx.AsyncClient, without: Settings, sessions: SessionFactory) -> Fleet:
    records = Records(sessions, await Temporal.open(without))
    return Fleet(await new_client(http, without), records)


async def accepted_soon(fleet: Fleet, method: str, path: str, body: object = None) -> dict:
    """The answer to a change, whose operation must be pending."""
    started = time.monotonic()
    begun = await fleet.client.data(method, path, body, 202)
    assert time.monotonic() - started < SOON
    operation = await fleet.client.data("GET", f"/v1/operations/{begun['operation']['id']}")
    assert (operation["state"], operation["startedAt"]) == ("pending", None)
    return begun


async def test_changes_are_accepted_and_stay_pending(fleet: Fleet) -> None:
    provider = await fleet.provider()
    body = {"name": "one", "providerId": provider["id"], "size": "small"}
    server = await fleet.settled(await accepted_soon(fleet, "POST", "/v1/servers", body))
    instance = {"name": "a", "slug": "a", "serverId": server["id"], "odooVersion": "19.0"}
    begun = await fleet.settled(await accepted_soon(fleet, "POST", "/v1/instances", instance))
    path = f"/v1/instances/{begun['id']}"
    await fleet.end(await accepted_soon(fleet, "POST", f"{path}/actions", {"action": "stop"}), "failed")
    await accepted_soon(fleet, "DELETE", path)
    await accepted_soon(fleet, "DELETE", f"/v1/servers/{server['id']}?force=true")


@hangs
async def test_a_temporal_that_hangs_does_not_hang_the_api(fleet: Fleet) -> None:
    provider = await fleet.provider()
    body = {"name": "one", "providerId": provider["id"], "size": "small"}
    await accepted_soon(fleet, "POST", "/v1/servers", body)


async def test_a_cancellation_is_kept_for_the_sweep(fleet: Fleet) -> None:
    begun = await fleet.begin_server()
    path = f"/v1/operations/{begun['operation']['id']}"
    started = time.monotonic()
    await fleet.client.call("POST", f"{path}/cancel", status=202)
    assert time.monotonic() - started < SOON
    assert (await fleet.client.data("GET", path))["state"] == "cancelling"


async def test_what_is_read_needs_no_temporal(fleet: Fleet) -> None:
    server = await fleet.server()
    started = time.monotonic()
    await fleet.client.call("GET", f"/v1/servers/{server['id']}", status=200)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (asyncpg.TooManyConnectionsError(), True),
        (asyncpg.CannotConnectNowError(), True),
        (asyncpg.AdminShutdownError(), True),
        (asyncpg.CrashShutdownError(), True),
        (asyncpg.DiskFullError(), True),
        (asyncpg.ConnectionDoesNotExistError(), True),
        (asyncpg.InternalClientError(), True),
        (asyncpg.QueryCanceledError(), True),
        (asyncpg.LockNotAvailableError(), True),
        (asyncpg.IdleInTransactionSessionTimeoutError(), True),
        (asyncpg.DeadlockDetectedError(), False),
        (asyncpg.UndefinedTableError(), False),
        (RuntimeError(), False),
    ],
)
def test_what_a_database_says_that_is_away(error: Exception, is_away: bool) -> None:
    assert (away(error) is not None) is is_away
    assert (away(DBAPIError("SELECT", None, error)) is not None) is (is_away and hasattr(error, "sqlstate"))


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_database_that_has_no_connection_left_is_told(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    async with sessions() as session, session.begin():
        role = f"r{new_id().hex}"
        await session.execute(text(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0"))
    url = settings.database_url.replace("//postgres@", f"//{role}@")
    async with open_api(settings.model_copy(update={"database_url": url})) as http:
        for method in ("GET", "POST"):
            headers = {"Authorization": f"Bearer {client.token}"}
            answer = await http.request(method, "/v1/servers", json={}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    async with sessions() as session, session.begin():
        await session.execute(text(f"DROP ROLE {role}"))


@pytest.mark.fault("4")
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_process_that_hangs_in_a_transaction_loses_its_locks(
    fleet: Fleet, settings: Settings
) -> None:
    begun = await fleet.begin_server()
    frozen = open_database(settings.database_url, {**LIMITS, "idle_in_transaction_session_timeout": "500ms"})
    async with frozen.connect() as connection:
        lock = text("SELECT id FROM servers WHERE id = :id FOR UPDATE")
        await connection.execute(lock, {"id": begun["id"]})
        # It waits for the lock, and gets it.
        await fleet.client.call("DELETE", f"/v1/servers/{begun['id']}?force=true", status=202)
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT 1"))
    await frozen.dispose()


@pytest.mark.fault("4")
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_connections_have_limits_and_migrations_have_none(settings: Settings) -> None:
    for limits, expected in ((LIMITS, "15s"), ({}, "0")):
        database = open_database(settings.database_url, limits)
        async with database.connect() as connection:
            shown = await connection.scalar(text("SHOW idle_in_transaction_session_timeout"))
        await database.dispose()
        assert shown == expected


async def test_a_database_that_is_away_is_told(settings: Settings) -> None:
    url = f"postgresql+asyncpg://nobody@127.0.0.1:{free_port()}/nothing"
    async with open_api(settings.model_copy(update={"database_url": url})) as http:
        _, token = new_api_key(new_id(), "test", "admin")
        for headers in ({}, {"Authorization": f"Bearer {token}"}):
            answer = await http.get("/v1/servers", headers=headers)
            assert answer.status_code == 503
            body = answer.json()
            assert body["error"]["code"] == "unavailable"
            assert body["meta"]["request_id"] == answer.headers["X-Request-Id"]
            assert "nobody" not in answer.text
