"""Webhook endpoints through the API."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update
from sqlmodel import col
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.webhooks.endpoints import WebhookEndpoint, added_headers, signing_secrets
from deployerp.drivers.temporal import Temporal
from tests.conftest import Client, Fleet, new_client, open_api

ENDPOINTS = "/v1/webhook-endpoints"
HOOKS = "https://example.com/hooks"
SECRET = "hunter2 of a receiver"
Row = Callable[[dict], Awaitable[WebhookEndpoint]]
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def added(client: Client, **more: Any) -> dict:
    return await client.data("POST", ENDPOINTS, {"url": HOOKS} | more, 201)


@pytest.fixture
def row(sessions: SessionFactory) -> Row:
    """Reads an endpoint as the database has it."""

    async def read(endpoint: dict) -> WebhookEndpoint:
        async with sessions() as session:
            return await session.get_one(WebhookEndpoint, UUID(endpoint["id"]))

    return read


async def changed(sessions: SessionFactory, endpoint: dict, **values: Any) -> None:
    """As the worker changes it."""
    async with sessions() as session, session.begin():
        await session.execute(
            update(WebhookEndpoint).where(col(WebhookEndpoint.id) == UUID(endpoint["id"])).values(**values)
        )


def key_of(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


async def test_an_endpoint_is_created_listed_read_and_deleted(client: Client) -> None:
    body = {
        "url": HOOKS,
        "types": ["instance.*", "server.deleted"],
        "description": "ours,\nall",
        "format": "slack",
        "enabled": False,
    }
    created = await client.data("POST", ENDPOINTS, body, 201)
    secret = created.pop("secret")
    assert len(key_of(secret)) == 32
    assert {name: created[name] for name in body} == body | {"url": "https://example.com/***"}
    path = f"{ENDPOINTS}/{created['id']}"
    answer = await client.request("GET", path)
    assert answer.json()["data"] == created
    assert secret not in answer.text
    assert await client.data("GET", ENDPOINTS) == [created]
    await client.call("DELETE", path, status=204)
    for method in ("GET", "DELETE"):
        await client.error(method, path, code="not_found")
    assert await client.data("GET", ENDPOINTS) == []


@pytest.mark.fault("21")
@pytest.mark.parametrize(
    ("url", "format", "masked"),
    [
        ("https://hooks.slack.com/services/T0/B0/hunter2", "slack", "https://hooks.slack.com/***"),
        ("https://HOOKS.slack.com/services/T0/B0/hunter2", "raw", "https://HOOKS.slack.com/***"),
        ("https://discord.com/api/webhooks/1/hunter2", "discord", "https://discord.com/***"),
        (
            "https://prod-1.westeurope.logic.azure.com:443/workflows/1?sig=hunter2",
            "teams",
            "https://prod-1.westeurope.logic.azure.com:443/***",
        ),
        ("https://chat.example.com/hooks/hunter2", "slack", "https://chat.example.com/***"),
    ],
)
async def test_the_url_of_a_chat_is_a_secret(
    client: Client, sessions: SessionFactory, row: Row, url: str, format: str, masked: str
) -> None:
    created = await added(client, url=url, format=format)
    path = f"{ENDPOINTS}/{created['id']}"
    changed_url = url.replace("hunter2", "hunter3")
    answers = [
        await client.request("GET", path),
        await client.request("PATCH", path, {"description": "ours"}),
        await client.request("PATCH", path, {"url": changed_url}),
        await client.request("POST", f"{path}/rotate-secret"),
    ]
    assert [answer.json()["data"]["url"] for answer in answers] == [masked] * 4
    assert [each["url"] for each in await client.data("GET", ENDPOINTS)] == [masked]
    # What is masked cannot be found out by searching, nor be put in place of the URL, nor shown otherwise.
    for text in ("hunter3", "hunter", "/"):
        assert await client.data("GET", f"{ENDPOINTS}?q={text}") == []
    error = await client.error("PATCH", path, {"url": masked}, code="validation_error")
    assert "is masked" in error["message"]
    shown = await client.request("PATCH", path, {"format": "raw"})
    assert "hunter" not in shown.text
    assert (await row(created)).url == changed_url
    async with sessions() as session:
        entries = (await session.scalars(select(AuditEntry))).all()
    told = [each for entry in entries for each in (entry.before, entry.after) if each and "url" in each]
    assert {each["url"] for each in told} == {masked}
    assert "hunter" not in str([(entry.before, entry.after) for entry in entries])


@pytest.mark.fault("21")
async def test_the_url_of_a_receiver_is_shown_and_found(client: Client) -> None:
    created = await added(client)
    assert created["url"] == HOOKS
    assert await client.data("GET", f"{ENDPOINTS}?q=com/hooks") == [
        {name: value for name, value in created.items() if name != "secret"}
    ]


async def test_what_is_left_out_has_a_meaning(client: Client) -> None:
    created = await added(client)
    assert {name: created[name] for name in ("types", "format", "enabled", "headerNames")} == {
        "types": ["*"],
        "format": "raw",
        "enabled": True,
        "headerNames": [],
    }
    for name in ("description", "disabledReason", "failingSince", "oldSecretUntil"):
        assert created[name] is None


@one_database
@pytest.mark.fault("23")
@pytest.mark.parametrize(
    "url",
    [
        *("http://10.0.0.1/hooks", "https://169.254.169.254/", "http://[::1]:8080/", "http://[fd00::7]/"),
        *("http://[::ffff:192.168.1.1]/", "https://example.com:25/"),
    ],
)
async def test_a_url_that_can_never_work_is_refused(client: Client, url: str) -> None:
    path = f"{ENDPOINTS}/{(await added(client))['id']}"
    for method, where in (("POST", ENDPOINTS), ("PATCH", path)):
        error = await client.error(method, where, {"url": url}, code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == ["url"]
    # The operator's own network is not refused.
    await client.call("POST", ENDPOINTS, {"url": "http://127.0.0.1:8080/hooks"}, 201)


async def test_headers_do_not_follow_the_url_to_another_host(client: Client) -> None:
    created = await added(client, headers={"Authorization": SECRET})
    path = f"{ENDPOINTS}/{created['id']}"
    for url in ("https://example.org/hooks", "https://example.com:8443/hooks", "http://example.com/hooks"):
        error = await client.error("PATCH", path, {"url": url}, code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == ["headers"]
    moved = {"url": "https://example.org/hooks", "headers": {"Authorization": "another"}}
    assert (await client.data("PATCH", path, moved))["url"] == moved["url"]
    without = {"url": HOOKS, "headers": {}}
    assert (await client.data("PATCH", path, without))["headerNames"] == []
    assert (await client.data("PATCH", path, {"url": "https://example.net/"}))[
        "url"
    ] == "https://example.net/"


@one_database
async def test_each_endpoint_has_a_secret_of_its_own(client: Client) -> None:
    assert len({(await added(client))["secret"] for _ in range(3)}) == 3


async def test_headers_are_kept_and_their_values_never_shown(
    client: Client, row: Row, sessions: SessionFactory, settings: Settings
) -> None:
    headers = {"X-Tenant": "7", "Authorization": SECRET}
    created = await added(client, headers=headers)
    path = f"{ENDPOINTS}/{created['id']}"
    assert created["headerNames"] == ["X-Tenant", "Authorization"]
    assert added_headers(await row(created), Vault(settings.encryption_keys)) == headers
    await client.data("PATCH", path, {"headers": {"X-Other": SECRET}})
    told = [(await client.request("GET", each)).text for each in (path, ENDPOINTS, "/v1/audit-log")]
    assert all("X-Other" in each for each in told)
    async with sessions() as session:
        told += map(repr, await session.scalars(select(AuditEntry)))
        told += map(repr, await session.scalars(select(WebhookEndpoint)))
    assert not any(SECRET in each for each in told)


@one_database
async def test_headers_that_break_a_rule_are_named_and_not_repeated(client: Client) -> None:
    ways = (("POST", ENDPOINTS), ("PATCH", f"{ENDPOINTS}/{(await added(client))['id']}"))
    for headers, field in (
        ({"Host": SECRET}, "headers.Host"),
        ({"webhook-id": SECRET}, "headers.webhook-id"),
        ({"X-A": f"{SECRET}\r\nX-B: c"}, "headers.X-A"),
        ({"X-A": [SECRET]}, "headers.X-A"),
        ({"a b": SECRET}, "headers.a b"),
        ({"X-A": SECRET, "x-a": SECRET}, "headers"),
        ({f"X-{n}": SECRET for n in range(21)}, "headers"),
        (SECRET, "headers"),
    ):
        for way in ways:
            error = await client.error(*way, {"url": HOOKS, "headers": headers}, code="validation_error")
            assert [each["field"] for each in error["details"]["fields"]] == [field], headers
            assert SECRET not in str(error)


async def test_a_change_is_of_what_is_given(client: Client, row: Row) -> None:
    created = await added(client, types=["server.*"], description="ours", headers={"X-A": "1", "X-B": "2"})
    secret, known = created.pop("secret"), await row(created)
    path = f"{ENDPOINTS}/{created['id']}"
    now = created
    for body, seen in (
        ({"url": f"{HOOKS}/others"}, {}),
        ({"types": ["instance.deployed", "*_failed"]}, {}),
        ({"description": "theirs"}, {}),
        ({"description": ""}, {}),
        ({"format": "teams"}, {"url": "https://example.com/***"}),
        ({"headers": {"X-C": "3"}}, {"headerNames": ["X-C"]}),
        ({"headers": {}}, {"headerNames": []}),
        ({"enabled": False}, {}),
        ({}, {}),
        (dict.fromkeys(("url", "types", "description", "headers", "format", "enabled")), {}),
    ):
        answer = await client.data("PATCH", path, body)
        given = {name: value for name, value in body.items() if value is not None and name != "headers"}
        assert answer | {"updatedAt": None} == now | given | seen | {"updatedAt": None}
        now = await client.data("GET", path)
        assert now == answer
    assert (await row(created)).sealed_secret == known.sealed_secret
    assert (await row(created)).sealed_headers is None
    assert secret not in str(now)


@one_database
async def test_a_change_keeps_to_the_rules(client: Client) -> None:
    path = f"{ENDPOINTS}/{(await added(client))['id']}"
    for body, field in (
        ({"url": "ftp://example.com/"}, "url"),
        ({"types": []}, "types"),
        ({"types": ["nothing.*"]}, "types.0"),
        ({"description": "x" * 501}, "description"),
        ({"format": "email"}, "format"),
        ({"enabled": "perhaps"}, "enabled"),
        ({"enabled": 0}, "enabled"),
        ({"secret": "whsec_mine"}, "secret"),
        ({"disabledReason": None}, "disabledReason"),
    ):
        error = await client.error("PATCH", path, body, code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == [field]


async def test_a_change_of_what_has_changed_meanwhile_is_refused(client: Client) -> None:
    path = f"{ENDPOINTS}/{(await added(client))['id']}"
    tag = (await client.request("GET", path)).headers["ETag"]
    renamed = await client.request("PATCH", path, {"description": "a"}, {"If-Match": tag})
    assert renamed.status_code == 200
    assert (await client.request("PATCH", path, {"description": "b"}, {"If-Match": tag})).status_code == 412
    assert (await client.request("DELETE", path, headers={"If-Match": tag})).status_code == 412
    newest = {"If-Match": renamed.headers["ETag"]}
    assert (await client.request("DELETE", path, headers=newest)).status_code == 204


async def test_to_enable_it_again_is_a_new_beginning(client: Client, sessions: SessionFactory) -> None:
    created = await added(client)
    path = f"{ENDPOINTS}/{created['id']}"
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    await changed(sessions, created, failing_since=since)
    # It was enabled all the time: that changes nothing.
    assert (await client.data("PATCH", path, {"enabled": True}))["failingSince"] == "2026-01-02T03:04:05Z"
    await changed(sessions, created, enabled=False, disabled_reason="Nothing was accepted.")
    told = await client.data("PATCH", path, {"description": "still disabled"})
    assert (told["enabled"], told["disabledReason"]) == (False, "Nothing was accepted.")
    told = await client.data("PATCH", path, {"enabled": True})
    assert (told["enabled"], told["disabledReason"], told["failingSince"]) == (True, None, None)


async def test_what_ends_an_endpoint_wakes_it_to_end_what_waits(
    client: Client, sessions: SessionFactory, settings: Settings, row: Row
) -> None:
    disabled, deleted, kept = [await added(client) for _ in range(3)]
    await client.data("PATCH", f"{ENDPOINTS}/{disabled['id']}", {"enabled": False})
    await client.call("DELETE", f"{ENDPOINTS}/{deleted['id']}", status=204)
    await client.data("PATCH", f"{ENDPOINTS}/{kept['id']}", {"description": "kept"})
    assert [(await row(each)).awake for each in (disabled, deleted, kept)] == [True, True, False]


@pytest.mark.fault("24")
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"url": f"{HOOKS}/right"}),
        ("PATCH", "", {"headers": {"Authorization": "Bearer right"}}),
        ("PATCH", "", {"format": "slack"}),
        ("PATCH", "", {"enabled": False}),
        ("PATCH", "", {"enabled": True}),
        ("POST", "/rotate-secret", None),
        ("DELETE", "", None),
    ],
)
@one_database
async def test_an_endpoint_that_fails_is_told_of_a_change(
    client: Client, sessions: SessionFactory, settings: Settings, row: Row, method: str, path: str, body: Any
) -> None:
    created = await added(client)
    await changed(sessions, created, failing_since=utc_now(), enabled=body != {"enabled": True})
    await client.call(method, f"{ENDPOINTS}/{created['id']}{path}", body)
    endpoint = await row(created)
    assert endpoint.unseen_change
    workflow = (await Temporal.open(settings)).client.get_workflow_handle(endpoint.order.workflow_id)
    async with asyncio.timeout(30):
        while not await signals(workflow):
            await asyncio.sleep(0.05)
    assert (await signals(workflow))[0] == "changed"


async def signals(workflow: WorkflowHandle[Any, Any]) -> list[str]:
    try:
        history = await workflow.fetch_history()
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return []
        raise
    return [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in history.events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]


@pytest.mark.fault("24")
@one_database
async def test_an_endpoint_that_works_is_not_told_of_a_change(client: Client, row: Row) -> None:
    created = await added(client)
    path = f"{ENDPOINTS}/{created['id']}"
    await client.call("PATCH", path, {"url": f"{HOOKS}/other"})
    await client.call("POST", f"{path}/rotate-secret")
    assert not (await row(created)).unseen_change


# Secrets.


async def test_a_rotated_secret_overlaps_with_the_one_before(
    client: Client, row: Row, settings: Settings
) -> None:
    vault, created = Vault(settings.encryption_keys), await added(client)
    path = f"{ENDPOINTS}/{created['id']}"

    async def rotated(body: dict | None = None) -> tuple[str, dict]:
        told = await client.data("POST", f"{path}/rotate-secret", body, 200)
        secret = told.pop("secret")
        assert len(key_of(secret)) == 32
        assert told == await client.data("GET", path)
        return secret, told

    async def signing(after: timedelta = timedelta(0)) -> list[str]:
        return signing_secrets(await row(created), vault, utc_now() + after)

    first = created["secret"]
    assert await signing() == [first]
    before = utc_now()
    second, told = await rotated({"overlapHours": 168})
    until = datetime.fromisoformat(told["oldSecretUntil"])
    assert before + timedelta(hours=168) <= until <= utc_now() + timedelta(hours=168)
    assert await signing(timedelta(hours=167)) == [second, first]
    assert await signing(timedelta(hours=168)) == [second]
    # A day, without a word; and never more than two.
    third, told = await rotated()
    until = datetime.fromisoformat(told["oldSecretUntil"])
    assert before + timedelta(hours=24) <= until <= utc_now() + timedelta(hours=24)
    assert await signing() == [third, second]
    fourth, told = await rotated({"overlapHours": 0})
    assert told["oldSecretUntil"] is None
    assert await signing() == [fourth]
    assert (await row(created)).sealed_old_secret is None
    assert len({first, second, third, fourth}) == 4


@one_database
async def test_an_overlap_is_at_most_a_week(client: Client) -> None:
    path = f"{ENDPOINTS}/{(await added(client))['id']}/rotate-secret"
    for hours in (-1, 169, 0.5, "soon", None, True, "24"):
        error = await client.error("POST", path, {"overlapHours": hours}, code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == ["overlapHours"]


# Pings.


async def test_a_ping_goes_to_the_endpoint_alone_whatever_it_wants(
    client: Client, settings: Settings
) -> None:
    pinged = await added(client, types=["backup.failed"], description="Tells our chat")
    other = await added(client, types=["*"])
    answer = await client.request("POST", f"{ENDPOINTS}/{pinged['id']}/ping")
    assert answer.status_code == 202
    delivery = answer.json()["data"]
    assert (delivery["endpointId"], delivery["eventType"], delivery["state"], delivery["attempts"]) == (
        pinged["id"],
        "webhook_endpoint.pinged",
        "pending",
        0,
    )
    there = await client.data("GET", answer.headers["Location"])
    assert there == delivery | {"attemptLog": []}
    assert await client.data("GET", f"/v1/webhook-deliveries?endpoint_id={other['id']}") == []
    (event,) = await client.data("GET", "/v1/events")
    assert (event["id"], event["sequence"], event["resourceId"]) == (delivery["eventId"], 1, pinged["id"])
    assert event["data"] == {
        "id": pinged["id"],
        "description": "Tells our chat",
        "enabled": True,
        "disabledReason": None,
        "failingSince": None,
    }
    workflow = (await Temporal.open(settings)).client.get_workflow_handle(f"webhooks-{pinged['id']}")
    assert (await workflow.describe()).workflow_type == "DeliverWebhooks"
    again = await client.data("POST", f"{ENDPOINTS}/{pinged['id']}/ping", status=202)
    assert again["id"] != delivery["id"]
    assert again["eventId"] != delivery["eventId"]


async def test_pings_changes_and_events_at_once_do_not_stand_in_each_other_s_way(
    client: Client, fleet: Fleet
) -> None:
    endpoint = await added(client)
    path = f"{ENDPOINTS}/{endpoint['id']}"
    begun = [await fleet.begin_server(f"s-{n}") for n in range(5)]
    results = await asyncio.gather(
        *(client.request("POST", f"{path}/ping") for _ in range(10)),
        *(client.request("PATCH", path, {"description": f"d-{n}"}) for n in range(5)),
        *(client.request("POST", f"{path}/rotate-secret") for _ in range(5)),
        *(fleet.end(each) for each in begun),
    )
    assert [each.status_code for each in results[:20]] == [202] * 10 + [200] * 10
    sequences = [each["sequence"] for each in await client.data("GET", "/v1/events")]
    assert sequences == list(range(1, 16))
    pings = {answer.json()["data"]["eventId"] for answer in results[:10]}
    assert len(pings) == 10


async def test_a_disabled_endpoint_is_not_pinged(client: Client, sessions: SessionFactory) -> None:
    endpoint = await added(client)
    path = f"{ENDPOINTS}/{endpoint['id']}/ping"
    await changed(sessions, endpoint, enabled=False, disabled_reason="The receiver answered 410 Gone.")
    error = await client.error("POST", path, code="invalid_state")
    assert error["message"] == "The endpoint is disabled (The receiver answered 410 Gone.): enable it first."
    await client.call("DELETE", f"{ENDPOINTS}/{endpoint['id']}", status=204)
    await client.error("POST", path, code="not_found")
    assert await client.data("GET", "/v1/events") == []


@pytest.mark.fault("15")
async def test_an_organization_has_as_many_endpoints_as_it_may(settings: Settings) -> None:
    few = settings.model_copy(update={"webhook_endpoints": 2})
    async with open_api(few) as http:
        client, other = await new_client(http, few), await new_client(http, few)
        first = await added(client)
        answers = await asyncio.gather(*(client.request("POST", ENDPOINTS, {"url": HOOKS}) for _ in range(3)))
        assert sorted(answer.status_code for answer in answers) == [201, 402, 402]
        error = await client.error("POST", ENDPOINTS, {"url": HOOKS}, code="quota_exceeded")
        assert error["details"] == {"limit": 2}
        assert "delete one" in error["message"]
        await added(other)
        await client.call("DELETE", f"{ENDPOINTS}/{first['id']}", status=204)
        await added(client)
