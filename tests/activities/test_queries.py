"""The query service of a worker, asked over HTTP as the API does."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest
from pydantic import SecretStr

from deployerp.activities.queries import Answers, serve_queries
from deployerp.core.errors import (
    CredentialsRefused,
    DeployError,
    ProviderThrottled,
    Unavailable,
)
from deployerp.core.secrets import Vault, new_encryption_key
from deployerp.domain.queries import CheckCredentials
from deployerp.drivers import queries as client
from deployerp.drivers.clouds.cloud import Cloud
from deployerp.drivers.queries import Queries
from tests.conftest import free_port
from tests.drivers.clouds.fake_cloud import FakeCloud, FakeClouds

CREDENTIALS = {"token": "dop_v1_secret"}
OLD, NEW = SecretStr(new_encryption_key()), SecretStr(new_encryption_key())
VAULT = Vault([OLD])


class Recorded(FakeClouds):
    """Writes down what it is opened with."""

    def __init__(self, cloud: FakeCloud) -> None:
        super().__init__(cloud)
        self.opened: list[tuple[str, Mapping[str, str]]] = []

    def open(self, kind: str, credentials: Mapping[str, str]) -> Cloud:
        self.opened.append((kind, credentials))
        return super().open(kind, credentials)


@pytest.fixture
def clouds() -> Recorded:
    return Recorded(FakeCloud())


@pytest.fixture
async def url(clouds: Recorded) -> AsyncIterator[str]:
    async with serve_queries(Answers(clouds, VAULT), VAULT, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


async def ask(url: str, vault: Vault = VAULT) -> object:
    queries = Queries(url, vault)
    try:
        sealed = VAULT.seal_mapping(CREDENTIALS)
        return await queries.ask(CheckCredentials("digitalocean", sealed))
    finally:
        await queries.close()


async def test_credentials_that_the_cloud_takes_are_good(url: str, clouds: Recorded) -> None:
    assert await ask(url) is None
    assert clouds.opened == [("digitalocean", CREDENTIALS)]
    assert clouds.cloud.calls == ["find_nodes"]


@pytest.mark.parametrize("error", [CredentialsRefused("No."), ProviderThrottled("Later.", retry_after=3)])
async def test_an_error_of_the_cloud_reaches_the_request(
    url: str, clouds: Recorded, error: DeployError
) -> None:
    def fail(_: str) -> None:
        raise error

    clouds.cloud.before_call = fail
    with pytest.raises(type(error)) as caught:
        await ask(url)
    assert caught.value.message == error.message


async def test_an_unexpected_error_is_not_shown(url: str, clouds: Recorded) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("dop_v1_secret")

    clouds.cloud.before_call = fail
    with pytest.raises(DeployError) as caught:
        await ask(url)
    assert "secret" not in caught.value.message


async def test_who_does_not_know_the_keys_gets_no_answer(url: str, clouds: Recorded) -> None:
    with pytest.raises(Unavailable, match="the encryption keys differ"):
        await ask(url, Vault([NEW]))
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer "}):
            async with session.post(f"{url}/queries/CheckCredentials", headers=headers) as response:
                assert response.status == 401
    assert clouds.opened == []


async def test_a_key_that_is_being_rotated_is_taken(url: str) -> None:
    assert await ask(url, Vault([NEW, OLD])) is None


async def test_without_a_worker_a_query_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="No worker answers"):
        await ask(f"http://127.0.0.1:{free_port()}")


async def test_a_worker_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.1)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable):
            await ask(f"http://127.0.0.1:{port}")


async def test_workers_on_one_machine_share_a_port(url: str, clouds: Recorded) -> None:
    port = int(url.rpartition(":")[2])
    async with serve_queries(Answers(clouds, VAULT), VAULT, "127.0.0.1", port) as same:
        assert same == port
        for _ in range(8):
            assert await ask(url) is None


class Long(Answers):
    """Answers with a text of `length` characters, which comes in many pieces."""

    length = 0

    async def check_credentials(self, query: CheckCredentials) -> str:  # type: ignore[override]
        return "x" * self.length


async def test_a_long_answer_comes_whole_and_one_that_is_too_long_not_at_all(clouds: Recorded) -> None:
    answers = Long(clouds, VAULT)
    async with serve_queries(answers, VAULT, "127.0.0.1", 0) as port:
        answers.length = 900_000
        assert await ask(f"http://127.0.0.1:{port}") == "x" * answers.length
        answers.length = client.MAX_BYTES
        with pytest.raises(Unavailable):
            await ask(f"http://127.0.0.1:{port}")
