"""Webhook endpoints through the API."""

import base64

import pytest

from tests.conftest import Client

HOOKS = "https://example.com/hooks"


async def test_an_endpoint_is_created_listed_read_and_deleted(client: Client) -> None:
    body = {"url": HOOKS, "types": ["instance.*", "server.deleted"], "description": "ours,\nall"}
    created = await client.data("POST", "/v1/webhook-endpoints", body, 201)
    secret = created.pop("secret")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert {name: created[name] for name in body} == body
    assert created["enabled"] is True
    path = f"/v1/webhook-endpoints/{created['id']}"
    answer = await client.request("GET", path)
    assert answer.json()["data"] == created
    assert secret not in answer.text
    assert await client.data("GET", "/v1/webhook-endpoints") == [created]
    await client.call("DELETE", path, status=204)
    await client.error("GET", path, code="not_found")
    await client.error("DELETE", path, code="not_found")
    assert await client.data("GET", "/v1/webhook-endpoints") == []


async def test_without_types_everything_is_sent(client: Client) -> None:
    created = await client.data("POST", "/v1/webhook-endpoints", {"url": HOOKS}, 201)
    assert created["types"] == ["*"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_each_endpoint_has_a_secret_of_its_own(client: Client) -> None:
    made = [await client.data("POST", "/v1/webhook-endpoints", {"url": HOOKS}, 201) for _ in range(3)]
    assert len({each["secret"] for each in made}) == 3
