"""What every answer has in common, whatever the resource."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
import pytest

from deployerp.api.app import create_app
from deployerp.domain.settings import Settings
from tests.conftest import Client, Fleet

JSON = {"Content-Type": "application/json"}
# Nothing here depends on the database.
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@one_database
async def test_answers_say_when_and_by_which_request(client: Client) -> None:
    answer = await client.request("GET", "/v1/servers")
    body = answer.json()
    assert body.keys() == {"success", "data", "meta"}
    assert body["success"] is True
    assert body["meta"]["request_id"] == answer.headers["X-Request-Id"]
    assert body["meta"]["timestamp"].endswith("Z")
    assert abs(datetime.fromisoformat(body["meta"]["timestamp"]) - datetime.now(UTC)) < timedelta(seconds=5)


@one_database
async def test_a_request_id_of_the_client_is_kept_when_it_is_sane(client: Client) -> None:
    for given, kept in (
        ("my-request.0001", True),
        ("x" * 128, True),
        ("short", False),
        ("x" * 129, False),
        ("spaces are no good", False),
        ('evil"\tid;12345678', False),
    ):
        answer = await client.request("GET", "/v1/servers", headers={"X-Request-Id": given})
        assert (answer.headers["X-Request-Id"] == given) is kept, given
        assert answer.json()["meta"]["request_id"] == answer.headers["X-Request-Id"]


@one_database
async def test_errors_come_in_one_shape(client: Client) -> None:
    for method, path, code in (
        ("GET", "/v1/nothing", "not_found"),
        ("GET", f"/v1/servers/{uuid4()}", "not_found"),
        ("GET", f"/v1/servers/{uuid4()}/nothing", "not_found"),
        ("PUT", "/v1/servers", "method_not_allowed"),
        ("PATCH", "/v1/events", "method_not_allowed"),
        ("GET", "/v1/servers/no-id", "validation_error"),
        ("GET", "/v1/servers?page=x", "validation_error"),
    ):
        await client.error(method, path, code=code)


@one_database
async def test_the_allowed_methods_are_named(client: Client) -> None:
    answer = await client.request("PUT", "/v1/events")
    assert answer.headers["Allow"] == "GET"


@one_database
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
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["code"] == "validation_error"
    assert error["message"]


@one_database
async def test_what_a_client_calls_a_field_cannot_break_the_answer(client: Client) -> None:
    for name in ("\\ud800", "\\u0000", "x" * 100_000):
        for body in (
            f'{{"{name}": 1}}',
            f'{{"name": "a", "kind": "docker", "credentials": {{"{name}": "x"}}}}',
        ):
            headers = {"Authorization": f"Bearer {client.token}"} | JSON
            answer = await client.http.post("/v1/providers", content=body.encode(), headers=headers)
            assert answer.status_code == 422, answer.text
            assert len(answer.content) < 2000


@one_database
async def test_what_goes_wrong_on_our_side_shows_nothing_but_its_request_id(settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the password is hunter2hunter2")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        answer = await http.get("/broken")
    assert answer.status_code == 500
    body = answer.json()
    assert body["error"]["code"] == "internal_error"
    assert body["meta"]["request_id"] == answer.headers["X-Request-Id"]
    assert body["meta"]["request_id"] in body["error"]["message"]
    assert not re.search("hunter2|RuntimeError|Traceback", answer.text)


async def test_lists_come_page_by_page(client: Client) -> None:
    made = [
        (await client.data("POST", "/v1/providers", {"name": f"p{n}", "kind": "docker"}))["id"]
        for n in range(5)
    ]

    async def page(query: str) -> tuple[list[str], dict]:
        body = await client.call("GET", f"/v1/providers?{query}")
        assert body.keys() == {"success", "data", "meta"}
        return [each["id"] for each in body["data"]], body["meta"]

    newest_first = made[::-1]
    found, meta = await page("")
    assert found == newest_first
    counted = {name: meta[name] for name in ("page", "per_page", "total", "total_pages")}
    assert counted == {"page": 1, "per_page": 20, "total": 5, "total_pages": 1}
    walked = [await page(f"per_page=2&page={n}") for n in (1, 2, 3, 4)]
    assert [found for found, _ in walked] == [newest_first[:2], newest_first[2:4], newest_first[4:], []]
    assert {(meta["total"], meta["total_pages"]) for _, meta in walked} == {(5, 3)}
    assert (await page("order=asc&sort=created_at&per_page=3"))[0] == made[:3]
    assert (await page("page=1000000&per_page=100"))[0] == []


@one_database
async def test_an_empty_list_has_no_pages(client: Client) -> None:
    assert (await client.call("GET", "/v1/servers"))["meta"]["total_pages"] == 0


@one_database
async def test_a_page_that_there_cannot_be_is_refused(client: Client) -> None:
    for query, field in (
        ("page=0", "page"),
        ("page=1000001", "page"),
        ("per_page=0", "per_page"),
        ("per_page=101", "per_page"),
        ("sort=size", "sort"),
        ("order=up", "order"),
        ("perpage=5", "perpage"),
    ):
        error = await client.error("GET", f"/v1/servers?{query}", code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == [field]


@one_database
async def test_ids_sort_by_age_and_times_are_utc(client: Client, fleet: Fleet) -> None:
    first, second = await fleet.provider("a"), await fleet.provider("b")
    assert UUID(first["id"]).version == 7
    assert first["id"] < second["id"]
    assert first["createdAt"].endswith("Z")
