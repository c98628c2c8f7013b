"""A control plane as operators run it, and what a client of it does."""

import asyncio
import json
import os
import sys
import time
import uuid
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from aiohttp import web
from sqlalchemy import select, update
from sqlmodel import col
from standardwebhooks import Webhook, WebhookVerificationError

from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.sessions import open_database, session_factory
from deployerp.domain.servers import Server
from deployerp.drivers.temporal import Temporal
from deployerp.embedded.control_plane import environment_of
from deployerp.worker import open_worker
from tests.conftest import Client, free_port, new_client
from tests.e2e import world
from tests.e2e.faults import Faults
from tests.variables import AWKWARD_VARIABLES

OPEN = ("pending", "running", "cancelling")
SECRET_VARIABLE = "not-for-anybody-else-8d1f6a"


@dataclass
class Receiver:
    """A webhook receiver that takes only what is signed with its secret."""

    url: str = ""
    secret: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0

    async def take(self, request: web.Request) -> web.Response:
        try:
            event = Webhook(self.secret).verify(await request.text(), dict(request.headers))
        except (WebhookVerificationError, ValueError):
            self.refused += 1
            return web.Response(status=401)
        self.events.append(event)
        return web.Response(status=204)

    def types_of(self, resource_id: str) -> list[str]:
        return [event["type"] for event in self.events if event["data"]["id"] == resource_id]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@asynccontextmanager
async def command(settings: Settings, log: Path, *arguments: str) -> AsyncIterator[Process]:
    """`deployerp <arguments>` as a process of its own, with these settings; its output goes to `log`."""
    environment = os.environ | environment_of(settings.model_copy(update={"log_level": "DEBUG"}))
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deployerp.cli", *arguments),
            stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Workplace:
    """The one worker of a plane: in this process with faults, or a process of its own that can be killed."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.faults = Faults()
        self._settings = settings
        self._log = log
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._stop.clear()
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._work(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((self._task, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            await self._task

    async def stop(self) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def _work(self, ready: asyncio.Event) -> None:
        async with open_worker(self._settings, interceptors=[self.faults]):
            ready.set()
            await self._stop.wait()

    @asynccontextmanager
    async def elsewhere(self) -> AsyncIterator["WorkerProcess"]:
        """Meanwhile, the work is done by a real worker process."""
        await self.stop()
        process = WorkerProcess(self._settings, self._log)
        try:
            yield process
        finally:
            await process.end()
            await self.start()


class WorkerProcess:
    """`deployerp worker`, to be killed and started again."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self._running: Any = None
        self._process: Process | None = None

    async def start(self) -> None:
        self._running = command(self._settings, self._log, "worker")
        self._process = await self._running.__aenter__()

    async def kill(self) -> None:
        assert self._process is not None
        assert self._process.returncode is None, "the worker had ended by itself"
        self._process.kill()
        await self.end()

    async def end(self) -> None:
        if self._running is not None:
            await self._running.__aexit__(None, None, None)
            self._running = self._process = None


@dataclass
class Plane:
    """A control plane: an API process, PostgreSQL, Temporal and a worker; and its first customer."""

    settings: Settings
    client: Client
    temporal: Temporal
    worker: Workplace
    receiver: Receiver
    logs: Path
    answers: list[str]
    provider_id: str = ""
    secrets: list[str] = field(default_factory=list)
    """What was shown once and is kept nowhere."""

    def __post_init__(self) -> None:
        self.database = open_database(self.settings.database_url)
        self.sessions = session_factory(self.database)
        self.vault = Vault(self.settings.encryption_keys)

    @property
    def faults(self) -> Faults:
        return self.worker.faults

    async def get(self, path: str) -> Any:
        return await self.client.data("GET", path)

    async def begin(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The 202's data."""
        return await self.client.data(method, path, body, status=202)

    async def do(
        self, method: str, path: str, body: object = None, *, state: str = "succeeded"
    ) -> dict[str, Any]:
        """The operation that a request begins, at its end, which must be `state`."""
        begun = await self.begin(method, path, body)
        return await self.ended((begun.get("operation") or begun)["id"], state)

    async def ended(
        self, operation_id: str, state: str = "succeeded", seconds: float = 600
    ) -> dict[str, Any]:
        operation = await self.until(operation_id, lambda one: one["state"] not in OPEN, seconds)
        assert operation["state"] == state, f"it has {operation['state']}: {json.dumps(operation, indent=1)}"
        return operation

    async def until(
        self, operation_id: str, satisfied: Callable[[dict[str, Any]], bool], seconds: float = 600
    ) -> dict[str, Any]:
        """The operation as soon as it satisfies."""
        deadline = time.monotonic() + seconds
        while True:
            operation = await self.get(f"/v1/operations/{operation_id}")
            if satisfied(operation):
                return operation
            assert time.monotonic() < deadline, f"still not so after {seconds} s: {operation}"
            await asyncio.sleep(0.05)

    async def until_step(self, operation_id: str, name: str, detail: str = "") -> dict[str, Any]:
        """The operation as soon as the step shows as running and says `detail`."""

        def runs(operation: dict[str, Any]) -> bool:
            step = step_of(operation, name)
            assert operation["state"] in OPEN, f"it ended before {name} was seen: {operation}"
            return step is not None and step["state"] == "running" and detail in (step["detail"] or "")

        return await self.until(operation_id, runs)

    def server_body(self, **given: object) -> dict[str, object]:
        return {"name": f"s-{uuid.uuid4().hex[:8]}", "providerId": self.provider_id, "size": "large"} | given

    def instance_body(self, server_id: str, **given: object) -> dict[str, object]:
        slug = f"e2e-{uuid.uuid4().hex[:12]}"
        return {
            "name": slug,
            "slug": slug,
            "serverId": server_id,
            "odooVersion": "19.0",
            "environmentType": "development",
            "envVars": {
                "E2E_PLAIN": "seen",
                "E2E_SECRET": {"value": SECRET_VARIABLE, "secret": True},
                **{name: {"value": value, "secret": True} for name, value in AWKWARD_VARIABLES.items()},
            },
        } | given

    async def provision(self, **given: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """A new server, and the operation that made it."""
        begun = await self.begin("POST", "/v1/servers", self.server_body(**given))
        operation = await self.ended(begun["operation"]["id"])
        return await self.get(f"/v1/servers/{begun['id']}"), operation

    async def deploy(self, server_id: str, **given: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """A new instance, and the operation that made it."""
        begun = await self.begin("POST", "/v1/instances", self.instance_body(server_id, **given))
        operation = await self.ended(begun["operation"]["id"])
        return await self.get(f"/v1/instances/{begun['id']}"), operation

    async def await_webhooks(self, resource_id: str, types: list[str]) -> None:
        """Waits until the receiver has these events of a resource, in whatever order they were delivered."""
        deadline = time.monotonic() + 30
        while missing := Counter(types) - Counter(self.receiver.types_of(resource_id)):
            assert time.monotonic() < deadline, f"no webhook has come for {sorted(missing)}"
            await asyncio.sleep(0.1)
        assert self.receiver.refused == 0, "webhooks came with signatures that do not verify"

    async def act(self, resource: str, id: str, action: str) -> dict[str, Any]:
        return await self.do("POST", f"/v1/{resource}/{id}/actions", {"action": action})

    async def delete(self, resource: str, id: str) -> dict[str, Any]:
        operation = await self.do("DELETE", f"/v1/{resource}/{id}")
        await self.client.call("GET", f"/v1/{resource}/{id}", status=404)
        return operation

    async def change_server(self, server_id: str, **facts: object) -> None:
        """Writes into a server's row behind the control plane's back."""
        async with self.sessions() as session, session.begin():
            await session.execute(
                update(Server).where(col(Server.id) == uuid.UUID(server_id)).values(**facts)
            )

    async def server_row(self, server_id: str) -> Server:
        async with self.sessions() as session:
            return await session.get_one(Server, uuid.UUID(server_id))


def step_of(operation: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((step for step in operation["steps"] if step["name"] == name), None)


def seconds_of(timed: dict[str, Any]) -> float:
    """How long an operation or a step took."""
    started, finished = (datetime.fromisoformat(timed[key]) for key in ("startedAt", "finishedAt"))
    return (finished - started).total_seconds()


class Browser:
    """What a person's browser does with an instance: through the server's published port."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        scheme, _, self._host = url.partition("://")
        port = self._host.partition(":")[2]
        self._base = f"{scheme}://127.0.0.1:{port}"

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 when nobody answers."""
        try:
            async with self._session.get(
                self._base + path, headers={"Host": self._host}, allow_redirects=False
            ) as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""

    async def shows_login(self) -> bool:
        status, page = await self.get("/web/login")
        return status == 200 and 'name="login"' in page and 'name="password"' in page

    async def rpc(self, path: str, **params: object) -> Any:
        """The result of a JSON-RPC call; None where Odoo answers with an error."""
        async with self._session.post(
            self._base + path,
            json={"jsonrpc": "2.0", "method": "call", "params": params},
            headers={"Host": self._host},
        ) as response:
            return (await response.json()).get("result")

    async def sign_in(self, password: str) -> int | None:
        """The user's id, or None when Odoo refuses."""
        result = await self.rpc("/web/session/authenticate", db="odoo", login="admin", password=password)
        return result and result["uid"]

    async def call(self, model: str, method: str, *args: object) -> Any:
        path = f"/web/dataset/call_kw/{model}/{method}"
        return await self.rpc(path, model=model, method=method, args=args, kwargs={})


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[Browser]:
    jar = aiohttp.CookieJar(unsafe=True)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(cookie_jar=jar, timeout=timeout) as session:
        yield Browser(session, url)


@asynccontextmanager
async def open_plane(settings: Settings) -> AsyncIterator[Plane]:
    """A running control plane with a customer, a provider and a webhook endpoint; it leaves nothing."""
    logs, port, answers = settings.home, free_port(), []
    api = command(settings, logs / "api.log", "serve", "--port", str(port))

    async def record(response: httpx.Response) -> None:
        # What is shown once is shown there and nowhere else.
        once = ("/admin-password", "/webhook-endpoints")
        if not (response.request.method == "POST" and response.url.path.endswith(once)):
            answers.append((await response.aread()).decode())

    async with (
        receiving() as receiver,
        api as process,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=30, event_hooks={"response": [record]}
        ) as http,
    ):
        temporal = await Temporal.open(settings)
        worker = Workplace(settings, logs / "worker.log")
        await worker.start()
        plane = Plane(settings, await new_client(http, settings), temporal, worker, receiver, logs, answers)
        try:
            await _until_ready(http, process)
            endpoint = await plane.client.data(
                "POST", "/v1/webhook-endpoints", {"url": receiver.url, "types": ["*"]}
            )
            receiver.secret = endpoint["secret"]
            provider = await plane.client.data("POST", "/v1/providers", {"name": "here", "kind": "docker"})
            plane.provider_id = provider["id"]
            yield plane
        finally:
            left = await _remove_everything(plane)
            await worker.stop()
            await plane.database.dispose()
    assert not left, f"The tests left servers behind: {left}"


async def _until_ready(http: httpx.AsyncClient, process: Process) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.returncode is None, "the API has ended: its log tells why"
        assert time.monotonic() < deadline, "the API does not become ready"
        try:
            if (await http.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.1)


async def _remove_everything(plane: Plane) -> list[str]:
    """What tests have left, removed; tests that clean up after themselves leave nothing."""
    async with plane.sessions() as session:
        servers = list(await session.scalars(select(col(Server.id))))
    return await world.remove_servers([str(server_id) for server_id in servers])
