"""Providers whose credentials name an address: what a tenant can reach and read through them."""

import asyncio
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network

import pytest

from deployerp.core.errors import DeployError, ProviderRefused
from deployerp.drivers.clouds.cloud import Cloud
from deployerp.drivers.clouds.libcloud import LibcloudClouds
from deployerp.drivers.web import guarded_requests

pytestmark = pytest.mark.fault("3")
LOOPBACK = ip_network("127.0.0.1/32")
JSON = {"Content-Type": "application/json"}
SECRET = "what-only-the-inner-network-may-read"


class Listener:
    """Somebody at a private address, who answers what a test says and counts who came."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.requests: list[str] = []
        self.status, self.headers, self.body = 200, {**JSON, "X-Subject-Token": "t"}, b"{}"
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.requests.append(self.path)
                self.send_response(listener.status)
                for name, value in listener.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(listener.body)))
                self.end_headers()
                self.wfile.write(listener.body)

            do_POST = do_GET  # noqa: N815 - the name that the library calls

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((address, 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    listeners: list[Listener] = []

    def listen(address: str = "127.0.0.1") -> Listener:
        listeners.append(Listener(address))
        return listeners[-1]

    yield listen
    for listener in listeners:
        listener.close()


def openstack(auth_url: str, *, allowed: bool = True) -> Cloud:
    credentials = {"auth_url": auth_url, "username": "u", "password": "p", "project": "p", "region": "r"}
    return LibcloudClouds(allowed_networks=[LOOPBACK] if allowed else []).open("openstack", credentials)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]"])
async def test_an_address_that_is_not_public_is_not_connected_to(
    listen: Callable[..., Listener], host: str
) -> None:
    listener = listen()
    with pytest.raises(DeployError):
        await openstack(f"http://{host}:{listener.port}/v3", allowed=False).find_nodes({})
    assert listener.requests == []


async def test_the_refusal_of_an_address_says_what_to_do(listen: Callable[..., Listener]) -> None:
    listener = listen()
    with pytest.raises(ProviderRefused, match="DEPLOYERP_ALLOWED_NETWORKS"):
        await openstack(f"http://localhost:{listener.port}/v3", allowed=False).find_nodes({})


async def test_an_allowed_address_is_connected_to(listen: Callable[..., Listener]) -> None:
    listener = listen()
    with pytest.raises(DeployError):
        await openstack(f"http://127.0.0.1:{listener.port}/v3").find_nodes({})
    assert listener.requests


async def test_an_address_out_of_the_catalogue_is_checked_too(listen: Callable[..., Listener]) -> None:
    identity, inner = listen(), listen("127.0.0.2")
    identity.status = 201
    identity.body = catalogue(f"http://127.0.0.2:{inner.port}/v2.1/p")
    with pytest.raises(ProviderRefused, match="not public"):
        await openstack(f"http://127.0.0.1:{identity.port}/v3").find_nodes({})
    assert identity.requests
    assert inner.requests == []


async def test_a_redirect_is_not_followed(listen: Callable[..., Listener]) -> None:
    outer, inner = listen(), listen()
    outer.status, outer.headers = 302, {"Location": f"http://127.0.0.1:{inner.port}/"}
    with pytest.raises(ProviderRefused, match="redirects"):
        await openstack(f"http://127.0.0.1:{outer.port}/v3").find_nodes({})
    assert inner.requests == []


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
async def test_nothing_of_an_answer_is_shown(listen: Callable[..., Listener], status: int) -> None:
    listener = listen()
    listener.status = status
    listener.body = json.dumps({"error": {"message": SECRET, "code": status}}).encode()
    with pytest.raises(DeployError) as failure:
        await openstack(f"http://127.0.0.1:{listener.port}/v3").find_nodes({})
    assert SECRET not in str(failure.value.message)
    assert SECRET not in str(failure.value.details)


async def test_an_answer_that_unpacks_to_more_than_fits_is_given_up(
    listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_requests, "MOST_BYTES", 1024 * 1024)
    listener = listen()
    listener.headers = {**JSON, "Content-Encoding": "gzip"}
    listener.body = gzip.compress(bytes(200 * 1024 * 1024), 1)
    with pytest.raises(ProviderRefused, match="more than 1 MiB"):
        await openstack(f"http://127.0.0.1:{listener.port}/v3").find_nodes({})


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
async def test_an_answer_that_only_drips_is_given_up(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(guarded_requests, "MOST_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server, beginning), daemon=True).start()
        async with asyncio.timeout(10):
            with pytest.raises(DeployError):
                await openstack(f"http://127.0.0.1:{server.getsockname()[1]}/v3").find_nodes({})


def drip(server: socket.socket, beginning: bytes) -> None:
    """Answers with one byte each tenth of a second, for longer than the test waits."""
    connection, _ = server.accept()
    with connection, suppress(OSError):
        connection.recv(65_536)
        connection.sendall(beginning)
        for _ in range(150):
            connection.sendall(b"H")
            time.sleep(0.1)


def catalogue(compute_url: str) -> bytes:
    endpoint = {"region": "r", "region_id": "r", "interface": "public", "url": compute_url, "id": "e"}
    service = {"type": "compute", "name": "nova", "id": "s", "endpoints": [endpoint]}
    token = {
        "expires_at": "2099-01-01T00:00:00.000000Z",
        "issued_at": "2026-01-01T00:00:00.000000Z",
        "user": {"id": "u", "name": "u"},
        "roles": [],
        "catalog": [service],
    }
    return json.dumps({"token": token}).encode()
