"""What goes wrong is answered in one shape, with a code, and with nothing that it should not show."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col
from structlog.testing import capture_logs

from deployerp.api.access.rate_limits import Limiter
from deployerp.api.contract import resources
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.organizations import Organization
from tests.api.calls import CALLS, DOCUMENT, Call
from tests.api.contents import everything
from tests.conftest import ERRORS, Client, Fleet, new_client, open_api
from tests.serving import listening

JSON = {"Content-Type": "application/json"}
LIMIT = 2000
WITH_BODY = [call for call in CALLS if "requestBody" in call.described]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY")
# Nothing here depends on the database.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def error_of(answer: httpx.Response, code: str) -> dict:
    """The error of an answer, which must have this code and what goes with it."""
    body = answer.json()
    assert body.keys() == {"success", "error", "meta"}, body
    assert body["success"] is False
    assert body["error"].keys() == {"code", "message", "details"}
    assert body["error"]["code"] == code, answer.text
    assert answer.status_code in {error.status for error in ERRORS if error.code == code}
    assert answer.headers.get_list("X-Request-Id") == [body["meta"]["request_id"]]
    assert answer.headers["Content-Type"] == "application/json"
    return body["error"]


# Addresses and methods.


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/v1", "/v1/", "/v2/servers", "/v1/nothing", "/V1/servers", "/v1/servers/"),
        *("//v1/servers", "/v1//servers", f"/v1/servers/{UUID(int=7)}/nothing", "/v1/servers%2F", "/%00"),
        *("/playground/nothing", "/healthz/", "/openapi.yaml", "/redoc"),
        *("/%0A", "/v1/servers%0A", "/v1/providers%0A", "/v1/me%0D", "/openapi.json%0A", "/playground%C2%A0"),
    ],
)
async def test_an_address_that_there_is_not(client: Client, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        error_of(await client.request(method, f"http://api{path}"), "not_found")


@pytest.mark.fault("23")
async def test_a_method_that_an_address_does_not_take(client: Client) -> None:
    for path, every in DOCUMENT["paths"].items():
        allowed = allowed_at(path, every)
        for method in set(METHODS) - set(allowed):
            answer = await client.request(method, path.format(id=uuid4()))
            error_of(answer, "method_not_allowed")
            assert answer.headers.get_list("Allow") == [", ".join(allowed)], path
        if "HEAD" not in allowed:
            # Its answer has no body; the server sees to that.
            answer = await client.request("HEAD", path.format(id=uuid4()))
            assert (answer.status_code, answer.headers["Allow"]) == (405, ", ".join(allowed))
        # Whoever asks for what there is gets just that.
        answer = await client.http.options(path.format(id=uuid4()))
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["Allow"] == ", ".join(allowed)


def allowed_at(path: str, described: dict[str, Any]) -> list[str]:
    """The methods of an address: HEAD goes with GET, unless that is a stream of events."""
    known = {"OPTIONS", *map(str.upper, described)}
    streams = "text/event-stream" in str(described.get("get", {}).get("responses", {}).get("200"))
    return sorted(known | ({"HEAD"} if "GET" in known and not streams else set()))


async def test_files_tell_what_they_take(client: Client) -> None:
    answer = await client.request("POST", "/playground/files/swagger-ui.css")
    error_of(answer, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_an_id_that_is_none(client: Client) -> None:
    for call in [call for call in CALLS if "{id}" in call.path]:
        for given in ("x", "0", "null", quote("é"), str(uuid4())[:-1], "%00"):
            answer = await client.request(call.method, call.path.format(id=given))
            error = error_of(answer, "validation_error")
            assert "id" in [each["field"] for each in error["details"]["fields"]], call.name


async def test_a_query_that_is_no_text(client: Client) -> None:
    """Whatever bytes come, it is the client's mistake and not ours."""
    for method in ("GET", "POST"):
        for query in (b"q=\xff\xfe", b"%ff=1", b"q=%00", b"&&=&", b"q=%ed%a0%80"):
            assert await status_of(client, method, query) in (200, 422), (method, query)


async def status_of(client: Client, method: str, query: bytes) -> int:
    """Of an answer to a request that an honest client could not send."""
    told: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    await client.http._transport.app(scope_of(client, method, query), receive, send)
    status: int = told[0]["status"]
    return status


def scope_of(client: Client, method: str, query: bytes) -> dict[str, Any]:
    headers = {b"authorization": f"Bearer {client.token}".encode(), b"idempotency-key": b"x"}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": "/v1/servers",
        "raw_path": b"/v1/servers",
        "query_string": query,
        "headers": list(headers.items()),
        "client": ("127.0.0.1", 1),
        "server": ("api", 80),
    }


@pytest.mark.parametrize(
    "sent",
    [
        b"BREW / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_in_the_envelope(settings: Settings, sent: bytes) -> None:
    async with listening(settings) as address:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(sent)
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    told = json.loads(body)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert f"content-length: {len(body)}\r\n".encode() in head
    assert f"x-request-id: {told['meta']['request_id']}".encode() in head
    assert (told["success"], told["error"]["code"]) == (False, "validation_error")


# Bodies.


@pytest.mark.fault("23")
@pytest.mark.parametrize("type", [None, "application/x-www-form-urlencoded", "text/plain"])
async def test_a_body_that_does_not_say_that_it_is_json_is_told_so(client: Client, type: str | None) -> None:
    headers = {"Authorization": f"Bearer {client.token}"} | ({"Content-Type": type} if type else {})
    content = json.dumps({"name": "one", "kind": "docker"}).encode()
    answer = await client.http.post("/v1/providers", content=content, headers=headers)
    [field] = error_of(answer, "validation_error")["details"]["fields"]
    assert field["field"] == "body"
    assert "send it with the header `Content-Type: application/json`" in field["message"]


async def test_of_many_mistakes_some_are_told(client: Client) -> None:
    body = {f"x{number}": number for number in range(999)}
    error = error_of(await client.request("POST", "/v1/servers", body), "validation_error")
    assert len(error["details"]["fields"]) == 50
    # The three fields that are missing are mistakes too.
    assert error["message"].endswith("; and 952 more")


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/v1/auth/token", {f"x{number}": number for number in range(1001)}, "body"),
        ("/v1/instances", {"envVars": {f"x{number}": 5 for number in range(1001)}}, "envVars"),
        ("/v1/providers", {"credentials": {f"x{number}": 5 for number in range(1001)}}, "credentials"),
        ("/v1/webhook-endpoints", {"eventTypes": list(range(1001))}, "eventTypes"),
    ],
)
async def test_what_has_no_end_is_not_looked_through(
    client: Client, settings: Settings, path: str, body: dict[str, Any], named: str
) -> None:
    # As large as a body may be.
    async with open_api(settings) as http:
        headers = {"Authorization": f"Bearer {client.token}"}
        error = error_of(await http.post(path, json=body, headers=headers), "validation_error")
    assert error["message"] == f"body: {named} must have at most 1000 parts"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"name": "a",}',
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b"[]",
        b'"text"',
        b"null",
        b"1" * 5000,
        b"[" * 100_000,
        b'{"name": NaN}',
    ],
    ids=lambda content: repr(content[:12]),
)
async def test_a_body_that_is_no_json_object_is_refused(client: Client, content: bytes) -> None:
    headers = {"Authorization": f"Bearer {client.token}"} | JSON
    answer = await client.http.post("/v1/servers", content=content, headers=headers)
    assert error_of(answer, "validation_error")["message"]


async def test_a_body_that_is_not_said_to_be_json_is_refused(client: Client) -> None:
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "x",
    ):
        headers = {"Authorization": f"Bearer {client.token}", "Content-Type": kind}
        answer = await client.http.post("/v1/servers", content=b'{"name": "a"}', headers=headers)
        error_of(answer, "validation_error")


async def test_what_a_client_calls_a_field_cannot_break_the_answer(client: Client) -> None:
    for name in ("\\ud800", "\\u0000", "x" * 100_000):
        for body in (
            f'{{"{name}": 1}}',
            f'{{"name": "a", "kind": "docker", "credentials": {{"{name}": "x"}}}}',
        ):
            headers = {"Authorization": f"Bearer {client.token}"} | JSON
            answer = await client.http.post("/v1/providers", content=body.encode(), headers=headers)
            error_of(answer, "validation_error")
            assert len(answer.content) < 2000


@pytest.fixture
async def small(settings: Settings) -> AsyncIterator[Client]:
    """An admin where bodies are kept small."""
    few = settings.model_copy(update={"max_body_bytes": LIMIT})
    async with open_api(few) as http:
        yield await new_client(http, few, plan="starter")


async def post(
    client: Client, call: Call, content: object, headers: dict[str, str] | None = None
) -> httpx.Response:
    bearer = {"Authorization": f"Bearer {client.token}"} | JSON | (headers or {})
    return await client.http.request(
        call.method, call.path.format(id=uuid4()), content=content, headers=bearer
    )


class Chunks:
    """A body that comes bit by bit, and how many of them were taken."""

    def __init__(self, size: int, count: int) -> None:
        self.taken = 0
        self._size = size
        self._count = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._count):
            self.taken += 1
            yield b" " * self._size


async def test_a_body_that_is_too_large_is_refused_unread(small: Client, sessions: SessionFactory) -> None:
    known = await everything(sessions)
    for call in WITH_BODY:
        for length, taken in (({"Content-Length": str(LIMIT + 1)}, 0), ({}, 3)):
            chunks = Chunks(LIMIT // 2, 1000)
            answer = await post(small, call, chunks, {"Idempotency-Key": call.name, **length})
            assert str(LIMIT) in error_of(answer, "payload_too_large")["message"], call.name
            assert "X-RateLimit-Remaining" in answer.headers
            assert chunks.taken == taken, call.name
    assert await everything(sessions) == known


async def test_a_body_of_just_the_right_size_is_read(small: Client) -> None:
    body = b'{"name": "here", "kind": "docker"}'
    (create,) = [call for call in CALLS if call.name == "create_provider"]
    for key, content in (("told", body.ljust(LIMIT)), ("chunks", _in_chunks(body.ljust(LIMIT)))):
        answer = await post(small, create, content, {"Idempotency-Key": key})
        assert answer.status_code in (201, 409), answer.text


async def _in_chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 100):
        yield content[start : start + 100]


async def test_a_length_that_is_not_true_does_not_help(small: Client) -> None:
    (create,) = [call for call in CALLS if call.name == "create_provider"]
    for told in ("1", "x", "-1", "1e9", ""):
        answer = await post(small, create, b" " * (LIMIT + 1), {"Content-Length": told})
        error_of(answer, "payload_too_large")


async def test_who_may_not_do_it_is_told_that_first(small: Client) -> None:
    small.token = "none"
    for call in WITH_BODY:
        if call.permission is not None:
            chunks = Chunks(LIMIT, 1000)
            error_of(await post(small, call, chunks), "unauthorized")
            assert chunks.taken == 0


# Limits, and what goes wrong on our side.


async def test_requests_that_are_too_many(
    client: Client, fleet: Fleet, settings: Settings, sessions: SessionFactory
) -> None:
    few = await new_client(client.http, settings)
    async with sessions() as session, session.begin():
        own = col(Organization.id) == few.organization_id
        await session.execute(update(Organization).where(own).values(requests_per_minute=1))
    assert (await few.request("GET", "/v1/servers")).status_code == 200
    for call in CALLS:
        if call.path.startswith("/v1/"):
            answer = await few.request(call.method, call.path.format(id=uuid4()), {})
            error = error_of(answer, "rate_limit_exceeded")
            (after,) = answer.headers.get_list("Retry-After")
            assert error["details"] == {"retry_after": int(after)}
            assert 0 < int(after) <= 60
            assert answer.headers.get_list("X-RateLimit-Remaining") == ["0"]


async def test_what_goes_wrong_on_our_side_is_told_once_in_the_log(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(resources, "find", broken)
    # A server would log what comes out of the application, without the id.
    told = httpx.ASGITransport(client.http._transport.app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=told, base_url="http://api") as http:
        client.http = http
        with capture_logs() as lines:
            answer = await client.request("GET", f"/v1/servers/{uuid4()}")
    error_of(answer, "internal_error")
    assert [(line["event"], line.get("status")) for line in lines] == [("unexpected", None), ("request", 500)]


async def test_who_goes_away_while_sending_is_no_error_of_ours(client: Client) -> None:
    scope = scope_of(client, "POST", b"") | {"path": "/v1/providers"}
    told: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    with capture_logs() as lines:
        await client.http._transport.app(scope, receive, send)
    assert told == []
    assert [(line["event"], line["log_level"], line["status"]) for line in lines] == [
        ("request", "info", 499)
    ]


@pytest.mark.parametrize("breaking", [(resources, "find"), (Limiter, "admit")], ids=["inside", "outside"])
async def test_what_goes_wrong_on_our_side_shows_nothing_but_its_request_id(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch, breaking: tuple[object, str]
) -> None:
    limited = await new_client(client.http, settings, plan="starter")

    async def broken(*_: object) -> None:
        raise RuntimeError("the password is hunter2hunter2")

    monkeypatch.setattr(*breaking, broken)
    headers = {"X-Request-Id": "my-request.0001"}
    with capture_logs() as lines:
        answer = await limited.request("GET", f"/v1/servers/{uuid4()}", headers=headers)
    error = error_of(answer, "internal_error")
    assert error["details"] == {}
    assert "my-request.0001" in error["message"]
    assert answer.headers["X-Request-Id"] == "my-request.0001"
    assert ("X-RateLimit-Remaining" in answer.headers) is (breaking[0] is resources)
    assert not re.search("hunter2|RuntimeError|Traceback", answer.text)
    (line,) = [line for line in lines if line["event"] == "unexpected"]
    assert isinstance(line["exc_info"], RuntimeError)
