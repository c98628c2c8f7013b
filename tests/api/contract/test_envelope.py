"""What every answer has in common, whatever the resource; and what its request leaves in the log."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import jsonschema_rs
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from deployerp.api.contract import resources
from deployerp.core.settings import Settings
from tests.api.calls import DOCUMENT, GUARDED, PREPARATIONS
from tests.conftest import Client, Fleet, new_client

# Nothing here depends on the database.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
# They answer with events.
BARE = {"stream_operation", "stream_events"}


@contextmanager
def logged() -> Iterator[list[Any]]:
    """The lines of the log, as they would be written."""
    with capture_logs([merge_contextvars]) as lines:
        yield lines


async def test_every_success_comes_in_the_envelope(client: Client, fleet: Fleet) -> None:
    for call in [call for call in GUARDED if call.name not in BARE]:
        ask = await PREPARATIONS[call.name](fleet)
        asked = datetime.now(UTC)
        answer = await client.request(call.method, ask.path(call), ask.body)
        assert answer.is_success, f"{call.name}: {answer.text}"
        if answer.status_code == 204:
            assert answer.content == b""
            continue
        body = answer.json()
        assert body.keys() == {"success", "data", "meta"}, call.name
        assert body["success"] is True
        assert isinstance(body["data"], list if call.is_list else dict)
        assert body["meta"]["request_id"] == answer.headers["X-Request-Id"]
        assert body["meta"]["timestamp"].endswith("Z")
        assert asked <= datetime.fromisoformat(body["meta"]["timestamp"]) <= datetime.now(UTC)
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.fault("27")
async def test_every_answer_is_what_the_document_says_with_each_field_that_is_null(
    client: Client, fleet: Fleet
) -> None:
    """Case B08: clients that are generated from the document must expect each null."""
    nulls = set()
    for call in [call for call in GUARDED if call.name not in BARE]:
        ask = await PREPARATIONS[call.name](fleet)
        answer = await client.request(call.method, ask.path(call), ask.body)
        if answer.status_code == 204:
            continue
        content = call.described["responses"][str(answer.status_code)]["content"]["application/json"]
        schema = content["schema"] | {"components": DOCUMENT["components"]}
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(answer.json())
        nulls |= {(call.name, field) for field in nulls_in(answer.json())}
    # Of what has just begun, and of what was never given.
    assert {("create_instance", "deployedAt"), ("get_server", "address")} <= nulls
    assert {("get_operation", "errorCode"), ("get_webhook_endpoint", "disabledReason")} <= nulls


def nulls_in(told: object) -> Iterator[str]:
    """The names of all fields that are null, at any depth."""
    if isinstance(told, dict):
        yield from (name for name, value in told.items() if value is None)
    for each in told.values() if isinstance(told, dict) else told if isinstance(told, list) else ():
        yield from nulls_in(each)


async def test_a_request_id_of_the_client_is_kept_when_it_is_sane(client: Client) -> None:
    for given, kept in (
        ("my-request.0001", True),
        ("x" * 128, True),
        ("short", False),
        ("x" * 129, False),
        ("spaces are no good", False),
        ('evil"\tid;12345678', False),
        ("é" * 8, False),
    ):
        headers = {"X-Request-Id": given.encode("latin-1")}
        answer = await client.request("GET", "/v1/servers", headers=headers)
        assert answer.headers.get_list("X-Request-Id") == [answer.json()["meta"]["request_id"]]
        assert (answer.headers["X-Request-Id"] == given) is kept, given
    # What stands around a value is no part of it.
    answer = await client.request("GET", "/v1/servers", headers={"X-Request-Id": "my-request.0001 \t"})
    assert answer.headers["X-Request-Id"] == "my-request.0001"


async def test_request_ids_differ(client: Client) -> None:
    ids = {(await client.request("GET", "/v1/servers")).headers["X-Request-Id"] for _ in range(20)}
    assert len(ids) == 20


@pytest.mark.parametrize(
    ("path", "token", "status", "events"),
    [
        ("/v1/servers", None, 200, {"request"}),
        ("/v1/servers", "none", 401, {"request", "token refused"}),
        ("/v1/nothing", None, 404, {"request"}),
        ("/v1/servers/01932a7c-8f4e-7c3a-9b2d-5e6f7a8b9c0d", None, 500, {"request", "unexpected"}),
    ],
)
async def test_every_line_of_a_request_has_its_id(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    token: str | None,
    status: int,
    events: set[str],
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(resources, "find", broken)
    client.token = token or client.token
    # What a request leaves behind must not be taken for the next one's.
    await client.request("GET", "/v1/providers", headers={"X-Request-Id": "the-one-before"})
    with logged() as lines:
        answer = await client.request("GET", path, headers={"X-Request-Id": "my-request.0001"})
    assert answer.status_code == status
    assert {line["event"] for line in lines} == events
    assert {line["request_id"] for line in lines} == {"my-request.0001"}
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["method"], line["path"], line["status"]) == ("GET", path, status)


async def test_work_after_an_answer_is_logged_with_its_request(
    client: Client, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = client.http._transport.app.state.context

    async def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(context.temporal, "offer_operation", broken)
    with logged() as lines:
        begun = await fleet.begin_server()
        await context.background.drain()
    (line,) = [line for line in lines if line["event"] == "unexpected"]
    (entry,) = await client.data("GET", f"/v1/audit-log?resource_id={begun['id']}")
    assert line["request_id"] == entry["requestId"]


async def test_every_answer_to_a_limited_organization_says_what_is_left(
    client: Client, settings: Settings
) -> None:
    limited = await new_client(client.http, settings, "read", plan="starter")
    remaining = []
    for method, path, status in (
        ("GET", "/v1/servers", 200),
        ("POST", "/v1/servers", 403),
        ("GET", "/v1/servers/x", 422),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/servers", 405),
        ("GET", "/openapi.json", 200),
        ("GET", "/", 200),
    ):
        answer = await limited.request(method, path)
        assert answer.status_code == status, path
        remaining.append(int(answer.headers["X-RateLimit-Remaining"]))
        for name in ("X-RateLimit-Limit", "X-RateLimit-Reset", "RateLimit-Policy", "RateLimit"):
            assert len(answer.headers.get_list(name)) == 1, (path, name)
    assert remaining == list(range(99, 99 - len(remaining), -1))
