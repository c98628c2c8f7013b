"""Providers through the API."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest

from deployerp.core.errors import CredentialsRefused, ProviderError
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.providers import Provider
from deployerp.drivers.clouds.cloud import Node
from tests.conftest import Client, Fleet, new_client, open_api
from tests.drivers.clouds.fake_cloud import FakeCloud, FakeClouds

SECRET = "dop_v1_0123456789abcdef"


async def test_a_provider_is_created_listed_read_and_deleted(client: Client) -> None:
    created = await client.data("POST", "/v1/providers", {"name": "here", "kind": "docker"}, status=201)
    assert await client.data("GET", "/v1/providers") == [created]
    assert await client.data("GET", f"/v1/providers/{created['id']}") == created
    await client.call("DELETE", f"/v1/providers/{created['id']}", status=204)
    await client.error("GET", f"/v1/providers/{created['id']}", code="not_found")
    await client.error("DELETE", f"/v1/providers/{created['id']}", code="not_found")
    assert await client.data("GET", "/v1/providers") == []


async def test_credentials_are_sealed_never_shown_and_forgotten_with_the_provider(
    client: Client, sessions: SessionFactory, settings: Settings
) -> None:
    body = {"name": "cloud", "kind": "digitalocean", "credentials": {"token": SECRET}}
    answer = await client.request("POST", "/v1/providers", body)
    path = f"/v1/providers/{answer.json()['data']['id']}"
    read = await client.request("GET", path)
    assert SECRET not in answer.text + read.text

    async def kept() -> Provider:
        async with sessions() as session:
            return await session.get_one(Provider, UUID(answer.json()["data"]["id"]))

    vault = Vault(settings.encryption_keys)
    assert SECRET not in repr(await kept())
    assert vault.open_mapping((await kept()).sealed_credentials) == {"token": SECRET}
    await client.call("DELETE", path, status=204)
    assert vault.open_mapping((await kept()).sealed_credentials) == {}


async def test_a_name_is_used_once_at_a_time(client: Client) -> None:
    body = {"name": "here", "kind": "docker"}
    first = await client.data("POST", "/v1/providers", body, 201)
    await client.error("POST", "/v1/providers", body, code="conflict")
    await client.call("DELETE", f"/v1/providers/{first['id']}", status=204)
    await client.call("POST", "/v1/providers", body, 201)


async def test_a_provider_with_servers_is_not_deleted(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    path = f"/v1/providers/{server['providerId']}"
    await client.error("DELETE", path, code="conflict")
    await fleet.end(await client.data("DELETE", f"/v1/servers/{server['id']}"))
    await client.call("DELETE", path, status=204)


async def test_credentials_that_are_no_text_are_refused(client: Client) -> None:
    answer = await client.http.post(
        "/v1/providers",
        content=b'{"name": "one", "kind": "digitalocean", "credentials": {"token": "\\ud800"}}',
        headers={"Authorization": f"Bearer {client.token}", "Content-Type": "application/json"},
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["fields"][0]["field"] == "credentials.token"


OPENSTACK = {"username": "u", "password": "p", "project": "p", "region": "r"}


@pytest.mark.fault("26")
@pytest.mark.parametrize(
    "url",
    [
        *(
            "keystone.example.com:5000",
            "ftp://keystone.example.com",
            "https://user:pass@keystone.example.com",
        ),
        *("https://keystone.example.com/#v3", "http://169.254.169.254/v3", "https://[fd00::1]:5000"),
        *("http://10.0.0.1:5000", "https://keystone.example.com:22", "http://0x7f000001/"),
    ],
)
async def test_an_address_of_openstack_that_can_never_work_is_refused(client: Client, url: str) -> None:
    body = {"name": "cloud", "kind": "openstack", "credentials": OPENSTACK | {"auth_url": url}}
    error = await client.error("POST", "/v1/providers", body, code="validation_error")
    assert [each["field"] for each in error["details"]["fields"]] == ["credentials.auth_url"]
    body["credentials"]["auth_url"] = "https://keystone.example.com:5000/v3"
    await client.call("POST", "/v1/providers", body, 201)


@pytest.mark.fault("26")
async def test_credentials_are_told_by_their_names(client: Client) -> None:
    for given, field, words in (
        ({}, "credentials.token", "is missing: digitalocean needs it (Personal access token"),
        ({"tocken": "x"}, "credentials.tocken", "is not known to digitalocean, which takes token"),
    ):
        body = {"name": "cloud", "kind": "digitalocean", "credentials": given}
        error = await client.error("POST", "/v1/providers", body, code="validation_error")
        [told] = error["details"]["fields"]
        assert told["field"] == field
        assert words in told["message"]


@dataclass
class Checked:
    """A client whose worker's cloud fails with `error`, where it is set; `calls` are those of the cloud."""

    client: Client
    reader: Client
    cloud: FakeCloud
    error: Exception | None = None

    async def create(self, headers: dict[str, str] | None = None) -> httpx.Response:
        body = {"name": "cloud", "kind": "digitalocean", "credentials": {"token": SECRET}}
        return await self.client.request("POST", "/v1/providers", body, headers)


@pytest.fixture
async def checked(settings: Settings) -> AsyncIterator[Checked]:
    cloud = FakeCloud()
    async with open_api(settings, clouds=FakeClouds(cloud)) as http:
        client, reader = await new_client(http, settings), await new_client(http, settings, "read")
        checked = Checked(client, reader, cloud)

        def fail(_: str) -> None:
            if checked.error:
                raise checked.error

        cloud.before_call = fail
        yield checked


@pytest.mark.fault("26")
async def test_credentials_that_the_cloud_refuses_connect_nothing(checked: Checked) -> None:
    checked.error = CredentialsRefused("The digitalocean API answered 401. Check the credentials.")
    answer = await checked.create()
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_error")
    [field] = answer.json()["error"]["details"]["fields"]
    assert (field["field"], SECRET in answer.text) == ("credentials", False)
    assert "answered 401" in field["message"]
    assert await checked.client.data("GET", "/v1/providers") == []
    checked.error = None
    assert (await checked.create()).status_code == 201


@pytest.mark.fault("26")
async def test_a_cloud_that_cannot_be_asked_connects_nothing(checked: Checked) -> None:
    checked.error = ProviderError("Could not reach the digitalocean API: connection refused.")
    answer = await checked.create()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert "connection refused" in answer.json()["error"]["message"]
    assert await checked.client.data("GET", "/v1/providers") == []


async def test_a_repeated_request_is_answered_without_asking_the_cloud(checked: Checked) -> None:
    first = await checked.create({"Idempotency-Key": "one"})
    assert (first.status_code, checked.cloud.calls) == (201, ["find_nodes"])
    checked.error = CredentialsRefused("No longer.")
    again = await checked.create({"Idempotency-Key": "one"})
    assert (again.status_code, again.json()["data"]) == (201, first.json()["data"])
    assert checked.cloud.calls == ["find_nodes"]


async def test_a_request_that_breaks_a_rule_asks_no_cloud(checked: Checked) -> None:
    for credentials in ({}, {"tocken": "x"}, {"token": 1}):
        body = {"name": "cloud", "kind": "digitalocean", "credentials": credentials}
        await checked.client.error("POST", "/v1/providers", body, code="validation_error")
    body = {"name": "cloud", "kind": "digitalocean", "credentials": {"token": SECRET}}
    await checked.reader.error("POST", "/v1/providers", body, code="forbidden")
    assert checked.cloud.calls == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
async def test_a_body_in_another_encoding_is_not_stored_unchecked(checked: Checked, encoding: str) -> None:
    checked.error = CredentialsRefused("The digitalocean API answered 401.")
    body = {"name": "cloud", "kind": "digitalocean", "credentials": {"token": SECRET}}
    answer = await checked.client.http.post(
        "/v1/providers",
        content=json.dumps(body).encode(encoding),
        headers={"Authorization": f"Bearer {checked.client.token}", "Content-Type": "application/json"},
    )
    assert answer.status_code == 422
    assert await checked.client.data("GET", "/v1/providers") == []


async def test_nobody_waits_for_a_check_that_takes_long(settings: Settings) -> None:
    reached, released = asyncio.Event(), asyncio.Event()

    class Slow(FakeCloud):
        async def find_nodes(self, tags: Mapping[str, str]) -> list[Node]:
            reached.set()
            await released.wait()
            return []

    async with open_api(settings, clouds=FakeClouds(Slow())) as http:
        client = await new_client(http, settings)
        checked = Checked(client, client, FakeCloud())
        waiting = asyncio.create_task(checked.create({"Idempotency-Key": "slow"}))
        async with asyncio.timeout(10):
            await reached.wait()
            # Another change of the same organization is made meanwhile, also where one writes at a time.
            await checked.client.data("POST", "/v1/providers", {"name": "here", "kind": "docker"}, 201)
            released.set()
            assert (await waiting).status_code == 201
