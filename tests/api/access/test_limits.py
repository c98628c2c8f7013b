"""Limits as clients meet them: exact over processes, told on every answer, by address for strangers."""

import asyncio
from collections import Counter

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from deployerp.api import gate
from deployerp.api.app import create_app
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.api_keys import ApiKey
from deployerp.domain.organizations import Organization
from deployerp.domain.rate_windows import RateWindow
from tests.api.processes import api_processes
from tests.conftest import Client, new_client, open_api

TOLD = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit-policy", "ratelimit")
STARTER = '"minute";q=100;w=60, "hour";q=1000;w=3600'
GUESS = {"Authorization": f"Bearer dep_live_{'0' * 16}_{'x' * 43}"}
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_two_processes_admit_exactly_what_the_plan_has(
    http: httpx.AsyncClient, settings: Settings
) -> None:
    client = await new_client(http, settings, plan="starter")
    async with api_processes(settings) as processes:
        # Fewer at a time than connections are made for: the limit is what is tested.
        turns = asyncio.Semaphore(40)

        async def ask(number: int) -> httpx.Response:
            async with turns:
                return await processes[number % 2].seen_by(client).request("GET", "/v1/servers")

        answers = await asyncio.gather(*(ask(number) for number in range(1500)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {STARTER}
    # By the end of their window: a slow machine may come to a second one.
    admitted = Counter(answer.headers["x-ratelimit-reset"] for answer in answers if answer.is_success)
    assert admitted[min(admitted)] == 100
    assert max(admitted.values()) == 100
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.headers["x-ratelimit-remaining"] for answer in refused} == {"0"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    error = refused[0].json()["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert error["details"]["retry_after"] <= 60


@one_database
async def test_every_answer_tells_how_its_caller_stands(http: httpx.AsyncClient, settings: Settings) -> None:
    client = await new_client(http, settings, plan="starter")
    remaining = 100
    for method, path, status in (
        ("GET", "/v1/servers", 200),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/servers", 405),
        ("POST", "/v1/servers", 422),
        ("GET", "/", 200),
        ("GET", "/openapi.json", 200),
    ):
        answer = await client.request(method, path)
        assert answer.status_code == status
        remaining -= 1
        assert [answer.headers[name] for name in TOLD[:2]] == ["100", str(remaining)], path
        assert set(TOLD) <= set(answer.headers)


@one_database
async def test_what_fails_on_our_side_counts_and_tells_too(settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
            answer = await (await new_client(http, settings, plan="starter")).request("GET", "/broken")
    assert answer.status_code == 500
    assert answer.headers["x-ratelimit-remaining"] == "99"


@one_database
async def test_an_enterprise_has_no_limit_unless_it_has_its_own(
    client: Client, sessions: SessionFactory, settings: Settings
) -> None:
    answer = await client.request("GET", "/v1/servers")
    assert not set(TOLD) & set(answer.headers)
    async with sessions() as session, session.begin():
        await session.execute(update(Organization).values(requests_per_hour=2))
    async with open_api(settings) as http:
        theirs = Client(http, client.organization_id, client.token)
        statuses = [(await theirs.request("GET", "/v1/servers")).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]


@one_database
async def test_organizations_do_not_spend_each_others(http: httpx.AsyncClient, settings: Settings) -> None:
    first, second = [await new_client(http, settings, plan="starter") for _ in range(2)]
    for _ in range(101):
        answer = await first.request("GET", "/v1/servers")
    assert answer.status_code == 429
    assert (await second.request("GET", "/v1/servers")).status_code == 200


@one_database
async def test_strangers_are_counted_by_address(settings: Settings) -> None:
    settings = settings.model_copy(update={"address_requests_per_minute": 5})
    async with open_api(settings) as http:
        client = await new_client(http, settings)
        # Those who ask for nobody and those who ask with what is no good, each for itself.
        for headers in ({}, GUESS):
            for number in range(7):
                answer = await http.get("/v1/servers", headers=headers)
                assert answer.status_code == (401 if number < 5 else 429)
                assert set(TOLD) <= set(answer.headers)
        # Whoever proves who they are is not held to what others of the address have done.
        assert (await client.request("GET", "/v1/servers")).status_code == 200
        assert (await http.get("/healthz")).status_code == 200


@one_database
@pytest.mark.fault("17")
async def test_a_revoked_key_locks_no_good_key_of_its_address_out(
    settings: Settings, sessions: SessionFactory
) -> None:
    settings = settings.model_copy(update={"address_requests_per_minute": 5})
    async with open_api(settings) as http:
        revoked, known, new = [await new_client(http, settings) for _ in range(3)]
        assert (await known.request("GET", "/v1/servers")).status_code == 200
        async with sessions() as session, session.begin():
            ended = update(ApiKey).where(col(ApiKey.organization_id) == revoked.organization_id)
            await session.execute(ended.values(revoked_at=utc_now()))
        for number in range(12):
            answer = await revoked.request("GET", "/v1/servers")
            assert answer.status_code == (401 if number < 5 else 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        for client in (known, new):
            assert (await client.request("GET", "/v1/servers")).status_code == 200


@one_database
@pytest.mark.fault("17")
async def test_guesses_are_looked_up_one_by_one_and_good_keys_still_pass(
    settings: Settings, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings.model_copy(update={"address_requests_per_minute": 5}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api") as http,
    ):
        known, new, late = [await new_client(http, settings) for _ in range(3)]
        assert (await known.request("GET", "/v1/servers")).status_code == 200
        assert [await status_of_guess(http, n) for n in range(7)] == [401] * 5 + [429] * 2
        assert (await new.request("GET", "/v1/servers")).status_code == 200
        # A wait that does not end: who was good before does not have to take it.
        monkeypatch.setattr(gate, "_PAUSE", 3600)
        monkeypatch.setattr(gate, "_MOST_WAITING", 1)
        app.state.context.authenticator._remembered.clear()
        waiting = asyncio.create_task(status_of_guess(http, 7))
        while not app.state.context.guesses._lanes:
            await asyncio.sleep(0)
        assert (await known.request("GET", "/v1/servers")).status_code == 200
        refused = await late.request("GET", "/v1/servers")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        waiting.cancel()
        rows = await guessed(sessions)
    # Made-up tokens do not fill the database.
    assert rows == 6


async def guessed(sessions: SessionFactory) -> int:
    refused = col(RateWindow.subject).startswith("refused:")
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(RateWindow).where(refused)) or 0


async def status_of_guess(http: httpx.AsyncClient, number: int = 0) -> int:
    headers = {"Authorization": f"Bearer dep_live_{number:016}_{'x' * 43}"}
    return (await http.get("/v1/servers", headers=headers)).status_code


async def from_address(app_client: httpx.AsyncClient, forwarded: str) -> int:
    answer = await app_client.get("/v1/servers", headers={"X-Forwarded-For": forwarded})
    return answer.status_code


@one_database
@pytest.mark.parametrize(("trusted", "second"), [(["127.0.0.0/8"], 401), ([], 429)], ids=["proxy", "anybody"])
async def test_only_a_trusted_proxy_says_where_a_request_comes_from(
    settings: Settings, trusted: list[str], second: int
) -> None:
    given = settings.model_dump() | {"address_requests_per_minute": 1, "trusted_proxies": trusted}
    settings = Settings.model_validate(given | {"encryption_keys": settings.encryption_keys})
    async with api_processes(settings, [("-m", "deployerp.cli", "serve")]) as (process,):
        assert await from_address(process.http, "203.0.113.7") == 401
        assert await from_address(process.http, "203.0.113.8") == second
        assert await from_address(process.http, "203.0.113.7") == 429
        # One network of IPv6 is one; what is no address at all is counted as it is.
        assert await from_address(process.http, "2001:db8::1") == second
        assert await from_address(process.http, "2001:db8::2") == 429
        assert await from_address(process.http, "no:address") == second
