"""Providers through the API."""

from tests.conftest import Client


async def test_a_provider_is_created_listed_read_and_deleted(client: Client) -> None:
    created = await client.data("POST", "/v1/providers", {"name": "here", "kind": "docker"}, status=201)
    assert (await client.data("GET", "/v1/providers"))[0]["id"] == created["id"]
    assert (await client.data("GET", f"/v1/providers/{created['id']}"))["kind"] == "docker"
    await client.call("DELETE", f"/v1/providers/{created['id']}", status=204)
    await client.call("GET", f"/v1/providers/{created['id']}", status=404)
