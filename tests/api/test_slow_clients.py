"""A client that does not come to the end of its headers is cut off; others notice nothing of it."""

import asyncio
from contextlib import suppress

import httpx
import pytest

from deployerp.api import serving
from deployerp.core.settings import Settings
from tests.conftest import new_client
from tests.serving import listening

SECONDS = 0.5
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: api\r\n\r\n"
pytestmark = [
    pytest.mark.fault("23"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


async def trickle(address: str, first: bytes, slow: bytes) -> float:
    """Sends something at once and then byte after byte; returns how long the server has borne that."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    writer.write(first)
    if REQUEST in first:
        await reader.readuntil(b"}")
    clock = asyncio.get_running_loop().time
    started = clock()
    ended = asyncio.create_task(reader.read())
    while not ended.done():
        writer.write(slow)
        await asyncio.wait([ended], timeout=0.05)
    with suppress(ConnectionError):
        assert await ended == b""
    writer.close()
    return clock() - started


@pytest.mark.parametrize(
    ("first", "slow"),
    [
        (b"", b""),
        (b"GET /", b"a"),
        (b"GET / HTTP/1.1\r\nX: ", b"a"),
        (REQUEST, b"\r\n"),
        (REQUEST + b"GET /", b"a"),
    ],
    ids=["silent", "first line", "header", "blank lines after a request", "second request"],
)
async def test_it_is_cut_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, first: bytes, slow: bytes
) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", SECONDS)
    async with listening(settings) as address, asyncio.timeout(20):
        assert SECONDS * 0.9 < await trickle(address, first, slow) < 10 * SECONDS


async def test_others_go_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", SECONDS)
    async with listening(settings) as address, httpx.AsyncClient(base_url=address) as http:
        client = await new_client(http, settings)
        headers = {"Authorization": f"Bearer {client.token}"}
        # A stream lives longer than that, and so does a body that comes slowly.
        async with http.stream("GET", "/v1/events/stream", headers=headers) as stream:
            sent = asyncio.create_task(
                http.post("/v1/providers", content=slow_body(), headers=headers | JSON)
            )
            slow = [trickle(address, b"GET /", b"a") for _ in range(20)]
            await asyncio.gather(*slow)
            assert (await sent).status_code == 201
            assert (await http.post("/v1/providers", json=PROVIDER, headers=headers)).status_code == 201
            async for line in stream.aiter_lines():
                if line == "event: provider.created" or line.startswith("retry:"):
                    break


JSON = {"Content-Type": "application/json"}
PROVIDER = {"name": "two", "kind": "docker"}


async def slow_body():
    """Takes three times as long as headers may."""
    for part in (b'{"name": "one", ', b'"kind": ', b'"docker"}'):
        await asyncio.sleep(SECONDS)
        yield part
