"""The product's job, done once as a client would do it: every step through the REST API."""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from rich.console import Console
from rich.table import Table
from standardwebhooks import Webhook, WebhookVerificationError

from deployerp.core.errors import DeployError, NotHealthy, Unavailable
from deployerp.core.settings import Settings
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.odoo.odoo import DATABASE
from deployerp.embedded import control_plane

_START_SECONDS = 60
_WEBHOOK_SECONDS = 60
_EXPECTED_EVENTS = (
    "server.created",
    "instance.deployed",
    "instance.stopped",
    "instance.started",
    "instance.restarted",
    "instance.deleted",
    "server.deleted",
)


class Api:
    """The REST API, as a client of it sees it."""

    def __init__(self, session: aiohttp.ClientSession, base: str, key: str) -> None:
        self._session = session
        self._base = base
        self._headers = {"Authorization": f"Bearer {key}"}

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The `data` of the answer. Raises `Unavailable` with the API's own words."""
        async with self._session.request(
            method, self._base + path, json=body, headers=self._headers
        ) as response:
            if response.status == 204:
                return None
            answer = await response.json()
        if not answer.get("success"):
            raise Unavailable(f"{method} {path}: {answer['error']['message']}")
        return answer["data"]

    async def follow(self, operation_id: str, tell: Callable[[str], None]) -> None:
        """Reads the operation's stream until it has ended. Raises `NotHealthy` unless it succeeded."""
        path = f"/v1/operations/{operation_id}/events"
        timeout = aiohttp.ClientTimeout(total=None)
        operation: dict[str, Any] = {"state": "unknown", "errorMessage": "The stream ended early."}
        async with self._session.get(self._base + path, headers=self._headers, timeout=timeout) as stream:
            async for line in stream.content:
                if line.startswith(b"data: "):
                    operation = json.loads(line.removeprefix(b"data: "))
                    if operation["steps"]:
                        step = operation["steps"][-1]
                        tell(" - ".join(filter(None, (step["title"], step["detail"]))))
        if operation["state"] != "succeeded":
            raise NotHealthy(f"The operation has {operation['state']}: {operation['errorMessage']}")


@dataclass
class Receiver:
    """A webhook receiver that takes only what is signed with its secret."""

    url: str = ""
    secret: str = ""
    events: list[str] = field(default_factory=list)
    refused: int = 0

    async def take(self, request: web.Request) -> web.Response:
        try:
            event = Webhook(self.secret).verify(await request.text(), dict(request.headers))
        except (WebhookVerificationError, ValueError):
            self.refused += 1
            return web.Response(status=401)
        self.events.append(event["type"])
        return web.Response(status=204)

    async def await_events(self, expected: tuple[str, ...]) -> None:
        deadline = time.monotonic() + _WEBHOOK_SECONDS
        while missing := set(expected) - set(self.events):
            if time.monotonic() > deadline:
                raise NotHealthy(f"No webhook arrived for {', '.join(sorted(missing))}.")
            await asyncio.sleep(0.1)
        if self.refused:
            raise NotHealthy(f"{self.refused} webhooks came with a signature that does not verify.")


class Progress:
    """What happens, on the terminal; and how long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, highlight=False)

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[Callable[[str], None]]:
        started, told = time.monotonic(), ""

        def tell(line: str) -> None:
            nonlocal told
            if line != told:
                told = line
                self._console.print(f"  [dim]{time.monotonic() - started:6.1f} s[/]  {line}", markup=True)

        self._console.print(f"[bold]{name}[/]")
        yield tell
        self.seconds[name] = round(time.monotonic() - started, 2)

    def table(self) -> None:
        table = Table("step", "seconds")
        table.columns[1].justify = "right"
        for name, seconds in self.seconds.items():
            table.add_row(name, f"{seconds:.2f}")
        table.add_row("[bold]all[/]", f"[bold]{sum(self.seconds.values()):.2f}[/]")
        self._console.print(table)

    def say(self, line: str) -> None:
        self._console.print(line)


async def run(home: Path, *, keep: bool) -> int:
    """The demo's exit status; its last line on standard output is one JSON object."""
    progress, result = Progress(), Result()
    try:
        async with AsyncExitStack() as running:
            await _Demo(home, keep, progress, result, running).run()
    except (DeployError, aiohttp.ClientError, OSError, TimeoutError) as error:
        result.error = error.message if isinstance(error, DeployError) else f"{type(error).__name__}: {error}"
        progress.say(f"[bold red]Failed:[/] {result.error}")
        progress.say(f"The log of the control plane is {result.log}.")
    progress.table()
    sys.stdout.write(json.dumps(result.summary(progress.seconds)) + "\n")
    return 1 if result.error else 0


@dataclass
class Result:
    """What the last line tells."""

    log: Path | None = None
    error: str | None = None
    instance_url: str | None = None
    events: list[str] = field(default_factory=list)

    def summary(self, seconds: dict[str, float]) -> dict[str, Any]:
        told = {"ok": self.error is None, "steps": seconds, "instance_url": self.instance_url}
        return told | {"events": self.events} | ({"error": self.error} if self.error else {})


@dataclass
class _Demo:
    home: Path
    keep: bool
    progress: Progress
    result: Result
    running: AsyncExitStack
    server_id: str | None = None

    async def run(self) -> None:
        home = self.home / f"demo-{os.getpid()}"
        ports = control_plane.Ports.free()
        settings = control_plane.embedded_settings(home, ports)
        self.result.log = home / "control-plane.log"
        async with self.progress.step("engine and images") as tell:
            # Locks and scratch of images are shared with every other control plane of this checkout.
            await control_plane.provide_images(
                settings.model_copy(update={"home": self.home.resolve()}), tell
            )
        receiver = await self._receive()
        if not self.keep:
            self.running.push_async_callback(self._remove_server)
        async with self.progress.step("control plane") as tell:
            api, key = await self._start(settings, ports, tell)
        await self._use(api, receiver)
        if self.keep:
            self._tell_where(ports, key)
        else:
            shutil.rmtree(home, ignore_errors=True)

    async def _receive(self) -> Receiver:
        receiver = Receiver()
        application = web.Application()
        application.router.add_post("/", receiver.take)
        runner = web.AppRunner(application)
        await runner.setup()
        self.running.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        return receiver

    async def _start(
        self, settings: Settings, ports: control_plane.Ports, tell: Callable[[str], None]
    ) -> tuple[Api, str]:
        """Starts the control plane as a process of its own and makes an organization with a key."""
        command = [sys.executable, "-m", "deployerp.cli"]
        options = [f"--port={ports.api}", f"--temporal-port={ports.temporal}"]
        options += [f"--ui-port={ports.temporal_ui}", f"--storage-port={ports.object_storage}"]
        options.append(f"--worker-port={ports.worker}")
        # The receiver is on loopback, which webhooks do not reach unless an operator says so.
        environment = os.environ | {"DEPLOYERP_ALLOWED_NETWORKS": '["127.0.0.0/8"]'}
        with (settings.home / "control-plane.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, "dev", "--no-images", f"--home={settings.home}", *options,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
        # Also of one that is to be ended here: a demo that is killed leaves it to `make clean`.
        (settings.home / "control-plane.pid").write_text(str(process.pid))
        if not self.keep:
            self.running.push_async_callback(_end, process)
        session = await self.running.enter_async_context(aiohttp.ClientSession())
        base = f"http://127.0.0.1:{ports.api}"
        await _until_ready(session, base, process)
        tell(f"API {base}, Temporal UI http://127.0.0.1:{ports.temporal_ui}")
        made = await asyncio.create_subprocess_exec(
            *command, "keys", "create", "--organization=demo", "--create", f"--home={settings.home}",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await made.communicate()
        key = output.decode().strip()
        return Api(session, base, key), key

    async def _use(self, api: Api, receiver: Receiver) -> None:
        endpoint = await api.call("POST", "/v1/webhook-endpoints", {"url": receiver.url, "types": ["*"]})
        receiver.secret = endpoint["secret"]
        provider = await api.call("POST", "/v1/providers", {"name": "here", "kind": "docker"})
        server = await self._begin(
            api, "provision server", "/v1/servers",
            {"name": "demo", "providerId": provider["id"], "size": "medium"},
        )  # fmt: skip
        instance = await self._begin(
            api, "deploy instance", "/v1/instances",
            {
                "name": "Demo", "slug": "demo", "serverId": server["id"], "odooVersion": "19.0",
                "odooEdition": "community", "environmentType": "development", "envVars": {"LANG": "C.UTF-8"},
            },
        )  # fmt: skip
        server_path, path = f"/v1/servers/{server['id']}", f"/v1/instances/{instance['id']}"
        url = (await api.call("GET", path))["url"]
        self.result.instance_url = url
        await self._look(f"{url}/web/login", "open login page")
        await self._sign_in(api, path, url)
        for action in ("stop", "start", "restart"):
            await self._begin(api, f"{action} instance", f"{path}/actions", {"action": action})
            if action == "stop":
                await self._look(f"{url}/web/login", "see that it is closed", open=False)
        await self._look(f"{url}/web/login", "open login page again")
        if not self.keep:
            await self._delete(api, "delete instance", path)
            await self._delete(api, "delete server", server_path)
        async with self.progress.step("webhooks") as tell:
            await receiver.await_events(_expected_events(self.keep))
            tell(f"{len(receiver.events)} webhooks, all signatures verified")
        self.result.events = receiver.events
        if not self.keep:
            await self._show_that_nothing_is_left(api, server["id"])

    async def _begin(self, api: Api, name: str, path: str, body: object) -> dict[str, Any]:
        async with self.progress.step(name) as tell:
            begun: dict[str, Any] = await api.call("POST", path, body)
            if path == "/v1/servers":
                self.server_id = begun["id"]
            await api.follow(begun["operation"]["id"], tell)
        return begun

    async def _delete(self, api: Api, name: str, path: str) -> None:
        async with self.progress.step(name) as tell:
            begun = await api.call("DELETE", path)
            await api.follow(begun["operation"]["id"], tell)

    async def _look(self, page: str, name: str, *, open: bool = True) -> None:
        """Asks for the login page as a browser does. Raises `NotHealthy` when it is not as it should be."""
        async with self.progress.step(name) as tell, _browser() as browser:
            async with browser.get(page, allow_redirects=False) as response:
                text = await response.text()
            shown = response.status == 200 and 'name="login"' in text
            if shown is not open:
                raise NotHealthy(
                    f"{page} answers {response.status}, {'with' if shown else 'without'} a login form."
                )
            tell(f"{page} shows Odoo's login form" if open else f"{page} answers {response.status}")

    async def _sign_in(self, api: Api, path: str, url: str) -> None:
        async with self.progress.step("sign in") as tell, _browser() as browser:
            admin = await api.call("POST", f"{path}/admin-password")
            call = {"params": {"db": DATABASE} | admin}
            async with browser.post(f"{url}/web/session/authenticate", json=call) as response:
                answer = await response.json()
            if not answer.get("result", {}).get("uid"):
                raise NotHealthy(
                    "Odoo does not let its administrator in with the password that was generated."
                )
            tell(f"as {admin['login']}, with the password that the API shows once")

    async def _show_that_nothing_is_left(self, api: Api, server_id: str) -> None:
        async with self.progress.step("nothing is left") as tell:
            left = await _on_this_machine(server_id)
            for path in ("/v1/servers", "/v1/instances"):
                left += [f"{path}/{each['id']}" for each in await api.call("GET", path)]
            if left:
                raise NotHealthy(f"Left over: {', '.join(left)}.")
            tell("no container, no volume, no record")

    async def _remove_server(self) -> None:
        """After a demo that broke off: its server would stay for good."""
        if self.server_id:
            async with Engine.local() as engine:
                await engine.remove_labelled(_tags(self.server_id))

    def _tell_where(self, ports: control_plane.Ports, key: str) -> None:
        self.progress.say(f"Instance       {self.result.instance_url}")
        self.progress.say(f"API playground http://127.0.0.1:{ports.api}/playground")
        self.progress.say(f"Temporal UI    http://127.0.0.1:{ports.temporal_ui}")
        self.progress.say(f"API key        {key}")
        self.progress.say("`make clean` ends it all.")


def _expected_events(keep: bool) -> tuple[str, ...]:
    return tuple(each for each in _EXPECTED_EVENTS if not (keep and each.endswith("deleted")))


@asynccontextmanager
async def _browser() -> AsyncIterator[aiohttp.ClientSession]:
    # Not every resolver knows that names under localhost are this machine.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=_Loopback())) as session:
        yield session


class _Loopback(aiohttp.abc.AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        address = {"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}
        return [address]

    async def close(self) -> None:
        pass


async def _on_this_machine(server_id: str) -> list[str]:
    """Containers and volumes of a server, also those of which the control plane knows nothing."""
    async with Engine.local() as engine:
        containers = [container.name for container in await engine.find_containers(_tags(server_id))]
        return containers + await engine.find_volumes(_tags(server_id))


def _tags(server_id: str) -> dict[str, str]:
    return {"deployerp.server": server_id}


async def _until_ready(
    session: aiohttp.ClientSession, base: str, process: asyncio.subprocess.Process
) -> None:
    async def look() -> bool:
        try:
            async with session.get(f"{base}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    await _until(look, process)


async def _until(look: Callable[[], Awaitable[bool]], process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not await look():
        if process.returncode is not None or time.monotonic() > deadline:
            raise Unavailable("The control plane did not start.")
        await asyncio.sleep(0.1)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        await process.wait()
