"""Routes in a real Caddy, in its container, with real HTTP servers behind it."""

import asyncio
import dataclasses
import json
import os
import re
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from deployerp.core.errors import ProxyError, ValidationFailed
from deployerp.drivers.caddy import Caddy, Route, container_spec, ensure_caddy
from deployerp.drivers.engine.containers import ContainerSpec, PublishedPort
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import connect

IMAGE = os.environ.get("DEPLOYERP_TEST_CADDY_IMAGE", "caddy:2.11")


@dataclasses.dataclass
class Proxy:
    """A Caddy in a container of this test, reached from outside at its own address."""

    engine: Engine
    spec: ContainerSpec
    admin: Caddy
    admin_socket: str
    address: str
    gateway: str

    async def get(self, host: str, path: str = "/", *, https: bool = False, **headers: str) -> Any:
        """Status, headers and body, without following redirects and without trusting a certificate."""
        # The name goes to Caddy's address, and into the TLS handshake.
        connector = aiohttp.TCPConnector(resolver=Fixed(self.address), ssl=untrusting())
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(
                f"http{'s' if https else ''}://{host}{path}", headers=headers, allow_redirects=False
            ) as response,
        ):
            return response.status, response.headers, await response.text()


class Fixed(aiohttp.abc.AbstractResolver):
    def __init__(self, address: str) -> None:
        self.address = address

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[Any]:
        return [
            {"hostname": host, "host": self.address, "port": port, "family": family, "proto": 0, "flags": 0}
        ]

    async def close(self) -> None:
        pass


def untrusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.fixture
async def proxy(tmp_path: Path, label: dict[str, str]) -> AsyncIterator[Proxy]:
    name = f"deployerp-test-{uuid.uuid4().hex[:12]}"
    spec = dataclasses.replace(
        container_spec(IMAGE),
        name=name,
        labels=label,
        network=name,
        volumes={f"{name}-data": "/data", f"{name}-config": "/config"},
        binds={str(tmp_path / "socket"): "/run/deployerp"},
        published_ports=[PublishedPort(80, 0, "127.0.0.1")],
        stop_timeout=2,
    )
    admin_socket = str(tmp_path / "socket" / "admin.sock")
    async with Engine.local() as engine:
        await ensure_caddy(engine, spec, label)
        [state] = await engine.find_containers(label)
        address = state.networks[name]
        gateway = address.rsplit(".", 1)[0] + ".1"
        async with Caddy(admin_socket) as admin:
            await until_ready(admin)
            yield Proxy(engine, spec, admin, admin_socket, address, gateway)


async def until_ready(admin: Caddy) -> None:
    async with asyncio.timeout(15):
        while True:
            try:
                return await admin.check_ready()
            except ProxyError:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def upstream(text: str, gateway: str) -> AsyncIterator[str]:
    """An HTTP server that tells what it was asked; its `address:port` as Caddy reaches it."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade") == "websocket":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(f"{text} {message.data}")
            return socket
        await asyncio.sleep(float(request.query.get("sleep", "0")))
        return web.json_response({"by": text, "path": request.path, "headers": dict(request.headers)})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, gateway, 0).start()
    try:
        yield f"{gateway}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_unknown_hosts_get_a_plain_404(proxy: Proxy) -> None:
    status, headers, body = await proxy.get("nobody.localhost")
    assert (status, body) == (404, "Not found\n")
    assert "Location" not in headers


async def test_a_plain_route_sets_the_headers_that_odoo_trusts(proxy: Proxy) -> None:
    async with upstream("odoo", proxy.gateway) as address:
        route = Route("one", ["a.localhost", "b.localhost"], address, https=False)
        for _ in range(2):
            await proxy.admin.ensure_route(route)
        assert await proxy.admin.routes() == {"one": route}
        forged = {
            "X-Forwarded-Host": "evil.example",
            "X-Forwarded-For": "6.6.6.6",
            "X-Forwarded-Proto": "https",
        }
        for host in route.hosts:
            status, _, body = await proxy.get(host, "/web/login", **forged)
            asked = json.loads(body)
            assert (status, asked["by"], asked["path"]) == (200, "odoo", "/web/login")
            assert asked["headers"]["Host"] == host
            assert asked["headers"]["X-Forwarded-Host"] == host
            assert asked["headers"]["X-Forwarded-Proto"] == "http"
            assert "6.6.6.6" not in asked["headers"]["X-Forwarded-For"]
        assert (await proxy.get("nobody.localhost"))[0] == 404


async def test_websockets_go_to_their_own_upstream(proxy: Proxy) -> None:
    async with upstream("http", proxy.gateway) as http, upstream("gevent", proxy.gateway) as gevent:
        await proxy.admin.ensure_route(Route("one", ["a.localhost"], http, gevent, https=False))
        assert json.loads((await proxy.get("a.localhost", "/web"))[2])["by"] == "http"
        assert json.loads((await proxy.get("a.localhost", "/websocket/health"))[2])["by"] == "gevent"
        connector = aiohttp.TCPConnector(resolver=Fixed(proxy.address))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.ws_connect("http://a.localhost/websocket") as websocket,
        ):
            await websocket.send_str("hello")
            assert await websocket.receive_str() == "gevent hello"


@pytest.mark.fault("10")
async def test_changes_of_other_sites_keep_websockets_open_and_memory_small(proxy: Proxy) -> None:
    connector = aiohttp.TCPConnector(resolver=Fixed(proxy.address), limit=0)
    async with (
        upstream("odoo", proxy.gateway) as address,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        await proxy.admin.ensure_route(Route("a", ["a.localhost"], address, address, https=False))
        other = Route("b", ["b.localhost"], address, address, https=False)

        async def connect_websocket() -> aiohttp.ClientWebSocketResponse:
            return await session.ws_connect("http://a.localhost/websocket")

        websockets = [await connect_websocket() for _ in range(50)]
        for _ in range(50):
            await proxy.admin.ensure_route(other)
            await proxy.admin.remove_route(other.id)
            # Caddy keeps each configuration under which a websocket was opened: this is the worst case.
            websockets.append(await connect_websocket())
        for websocket in websockets:
            await websocket.send_str("hello")
            assert await websocket.receive_str() == "odoo hello"
        assert await resident_megabytes(proxy) < 128


async def resident_megabytes(proxy: Proxy) -> float:
    status = await proxy.engine.execute(proxy.spec.name, ["cat", "/proc/1/status"], timeout=20, check=True)
    [kilobytes] = re.findall(r"^VmRSS:\s+(\d+) kB$", status.text, re.MULTILINE)
    return int(kilobytes) / 1024


async def test_https_hosts_get_a_certificate_and_a_redirect(proxy: Proxy) -> None:
    async with upstream("odoo", proxy.gateway) as address:
        await proxy.admin.ensure_route(Route("one", ["a.localhost"], address, https=True))
        await proxy.admin.ensure_route(Route("two", ["b.localhost"], address, https=False))
        status, headers, _ = await proxy.get("a.localhost", "/web?x=1")
        assert (status, headers["Location"]) == (308, "https://a.localhost/web?x=1")
        asked = json.loads(await until_served(proxy, "a.localhost"))
        assert asked["headers"]["X-Forwarded-Proto"] == "https"
        assert (await proxy.get("b.localhost"))[0] == 200

        await proxy.admin.ensure_route(Route("one", ["a.localhost"], address, https=False))
        assert (await proxy.get("a.localhost"))[0] == 200
        assert [route.https for route in (await proxy.admin.routes()).values()] == [False, False]


async def until_served(proxy: Proxy, host: str) -> str:
    async with asyncio.timeout(15):
        while True:
            try:
                status, _, body = await proxy.get(host, https=True)
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
                continue
            assert status == 200
            return str(body)


@pytest.mark.fault("9")
async def test_all_routes_are_set_at_once_and_unknown_ones_removed(proxy: Proxy) -> None:
    async with upstream("odoo", proxy.gateway) as address:
        plain, secure = (
            Route("one", ["a.localhost"], address, address, https=False),
            Route("two", ["b.localhost"], address),
        )
        await proxy.admin.ensure_route(Route("one", ["old.localhost"], address, https=True))
        await proxy.admin.ensure_route(Route("gone", ["gone.localhost"], address, https=False))
        await proxy.admin.set_routes([plain, secure])
        assert await proxy.admin.routes() == {"one": plain, "two": secure}
        assert json.loads((await proxy.get("a.localhost"))[2])["by"] == "odoo"
        assert json.loads(await until_served(proxy, "b.localhost"))["by"] == "odoo"
        assert (await proxy.get("gone.localhost"))[0] == 404
        assert (await proxy.get("nobody.localhost"))[0] == 404


@pytest.mark.fault("9")
async def test_setting_the_routes_that_are_there_changes_nothing(proxy: Proxy) -> None:
    routes = [Route(name, [f"{name}.localhost"], "nobody:80", https=False) for name in ("one", "two")]
    for route in routes:
        await proxy.admin.ensure_route(route)
    before = await saved(proxy)
    await proxy.admin.set_routes(routes)
    assert await saved(proxy) == before
    await proxy.admin.set_routes([])
    assert await saved(proxy) != before
    assert await proxy.admin.routes() == {}


async def saved(proxy: Proxy) -> str:
    """When Caddy last had another configuration: it saves each."""
    stat = ["stat", "-c", "%y", "/config/caddy/autosave.json"]
    return (await proxy.engine.execute(proxy.spec.name, stat, timeout=20, check=True)).text


@pytest.mark.fault("10")
async def test_setting_routes_brings_those_of_an_older_version_up_to_date(proxy: Proxy) -> None:
    route = Route("one", ["a.localhost"], "nobody:80", https=False)
    older = json.loads(json.dumps(route.config()))
    del older["handle"][0]["routes"][0]["handle"][-1]["stream_close_delay"]
    await proxy.admin._request("PUT", "config/apps/http/servers/http/routes/0", older)
    await proxy.admin.set_routes([route])
    assert await proxy.admin._request("GET", "id/route-one") == route.config()


async def test_removing_a_route_can_be_repeated(proxy: Proxy) -> None:
    await proxy.admin.ensure_route(Route("one", ["a.localhost"], "nobody:80", https=False))
    await proxy.admin.ensure_route(Route("two", ["b.localhost"], "nobody:80", https=False))
    for _ in range(2):
        await proxy.admin.remove_route("one")
    assert list(await proxy.admin.routes()) == ["two"]
    assert (await proxy.get("a.localhost"))[0] == 404


async def test_no_request_is_lost_while_the_upstream_changes(proxy: Proxy) -> None:
    answers: list[tuple[int, str]] = []

    async def ask(stop: asyncio.Event) -> None:
        while not stop.is_set():
            status, _, body = await proxy.get("a.localhost", "/?sleep=0.02")
            answers.append((status, json.loads(body)["by"] if status == 200 else body))

    async with upstream("blue", proxy.gateway) as blue, upstream("green", proxy.gateway) as green:
        await proxy.admin.ensure_route(Route("one", ["a.localhost"], blue, https=False))
        stop = asyncio.Event()
        slow = asyncio.create_task(proxy.get("a.localhost", "/?sleep=2"))
        askers = [asyncio.create_task(ask(stop)) for _ in range(4)]
        await asyncio.sleep(0.3)
        for address in (green, blue, green):
            began = time.monotonic()
            await proxy.admin.ensure_route(Route("one", ["a.localhost"], address, https=False))
            # The slow request under way is not waited for.
            assert time.monotonic() - began < 1
            await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*askers)
        assert json.loads((await slow)[2])["by"] == "blue"
        assert json.loads((await proxy.get("a.localhost"))[2])["by"] == "green"
    assert {status for status, _ in answers} == {200}
    assert {by for _, by in answers} == {"blue", "green"}


async def test_routes_survive_a_kill_and_a_replacement_of_the_container(
    proxy: Proxy, label: dict[str, str]
) -> None:
    route = Route("one", ["a.localhost"], "nobody:80", https=False)
    await proxy.admin.ensure_route(route)
    await proxy.engine.stop_container(proxy.spec.name, timeout=0)
    for verb in (proxy.admin.check_ready, proxy.admin.routes):
        with pytest.raises(ProxyError, match="does not answer"):
            await verb()
    await proxy.engine.start_container(proxy.spec.name)
    await until_ready(proxy.admin)
    assert await proxy.admin.routes() == {"one": route}

    network = f"{proxy.spec.name}-instance"
    await proxy.engine.ensure_network(network, label)
    await ensure_caddy(proxy.engine, dataclasses.replace(proxy.spec, memory_bytes=256 << 20), label)
    await until_ready(proxy.admin)
    assert await proxy.admin.routes() == {"one": route}
    [state] = await proxy.engine.find_containers(label)
    assert network in state.networks


async def test_the_admin_api_is_on_the_socket_only(proxy: Proxy, sshd: Any) -> None:
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.address, 2019)
    async with connect(sshd.target) as host, Caddy(await host.forward_socket(proxy.admin_socket)) as admin:
        await admin.check_ready()


async def test_a_refused_change_says_why(proxy: Proxy) -> None:
    with pytest.raises(ProxyError, match="refused"):
        await proxy.admin._request(
            "PUT", "config/apps/http/servers/http/routes/0", {"handle": [{"handler": "x"}]}
        )
    await proxy.admin.check_ready()


@pytest.mark.parametrize(
    "host",
    ["", "*.example.com", "{env.HOME}", "a_b.example", "A.example", "-a.example", "a b", "a/b", "127.0.0.1",
     "a..b", "a.example.", "a" * 64 + ".example", "a." * 130 + "example", "a.example\n"],
)  # fmt: skip
def test_bad_host_names_are_refused(host: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        Route("one", [host], "odoo:8069")
    assert caught.value.details["fields"][0]["field"] == "hosts"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hosts": []}, "hosts"),
        ({"id": "a/../b"}, "id"),
        ({"upstream": "{env.HOME}:80"}, "upstream"),
        ({"upstream": "odoo"}, "upstream"),
        ({"websocket_upstream": "unix//run/x"}, "upstream"),
    ],
)
def test_bad_routes_are_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        dataclasses.replace(Route("one", ["a.example"], "odoo:8069"), **change)
    assert caught.value.details["fields"][0]["field"] == field
