"""All that runs while deliveries are measured: PostgreSQL, Temporal, a worker, and a receiver."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import aiohttp
import postgres
from alembic import command as alembic
from api_load import child, cpu_seconds
from control_plane import running

from deployerp.core.errors import Unavailable
from deployerp.core.secrets import Vault
from deployerp.database.base import new_id
from deployerp.database.sessions import SessionFactory, open_database, session_factory
from deployerp.domain.events.log import write_event
from deployerp.domain.instances import Instance
from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.organizations import Organization
from deployerp.domain.webhooks.endpoints import WebhookEndpoint, new_webhook_secret
from deployerp.drivers.temporal import Temporal
from deployerp.embedded import control_plane
from deployerp.migrations import configuration

_READY_SECONDS = 60
_ARRIVAL_SECONDS = 200
_POLL_SECONDS = 0.02


class Arrival(NamedTuple):
    """At which endpoint, what, and when by the machine's clock."""

    endpoint: str
    id: str
    at: float


@dataclass(frozen=True)
class Receiver:
    """The process that takes what is sent."""

    http: aiohttp.ClientSession
    base: str

    def url(self, number: int) -> str:
        return f"{self.base}/hook/{number}"

    async def count(self) -> int:
        async with self.http.get(f"{self.base}/came") as answer:
            count: int = await answer.json()
            return count

    async def came(self) -> list[Arrival]:
        async with self.http.get(f"{self.base}/came?all") as answer:
            return [Arrival(*each) for each in await answer.json()]

    async def forget(self) -> None:
        async with self.http.delete(f"{self.base}/came") as answer:
            answer.raise_for_status()

    async def until(self, count: int) -> None:
        """Raises `Unavailable` when they do not come."""
        try:
            async with asyncio.timeout(_ARRIVAL_SECONDS):
                while await self.count() < count:
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise Unavailable(f"{await self.count()} of {count} deliveries came.") from None


@dataclass(frozen=True)
class House:
    """An organization with endpoints, on its own control plane."""

    sessions: SessionFactory
    temporal: Temporal
    receiver: Receiver
    processes: dict[str, int]
    vault: Vault
    organization_id: UUID
    endpoints: list[WebhookEndpoint] = field(default_factory=list)

    async def listen(self, endpoints: int) -> None:
        """Takes new endpoints in place of those that there are."""
        async with self.sessions() as session, session.begin():
            for old in self.endpoints:
                (await session.get_one(WebhookEndpoint, old.id)).enabled = False
            self.endpoints[:] = [
                WebhookEndpoint(
                    organization_id=self.organization_id,
                    url=self.receiver.url(number),
                    types=["*"],
                    sealed_secret=self.vault.seal(new_webhook_secret()),
                )
                for number in range(endpoints)
            ]
            session.add_all(self.endpoints)

    async def listen_to_nobody(self, endpoints: int) -> None:
        """Takes in addition endpoints whose receivers refuse connections."""
        failing = [
            WebhookEndpoint(
                organization_id=self.organization_id,
                url=f"http://127.0.0.1:{control_plane.Ports.free().api}/hook",
                types=["*"],
                sealed_secret=self.vault.seal(new_webhook_secret()),
            )
            for _ in range(endpoints)
        ]
        async with self.sessions() as session, session.begin():
            session.add_all(failing)
        self.endpoints.extend(failing)

    async def want_nothing_more(self) -> None:
        """Has all endpoints but the first keep to the events that they have."""
        async with self.sessions() as session, session.begin():
            for each in self.endpoints[1:]:
                (await session.get_one(WebhookEndpoint, each.id)).types = ["server.deleted"]

    async def write(self, events: int) -> tuple[list[EndpointOrder], float]:
        """Writes events in one transaction; whom to wake, and when it was committed."""
        instance = Instance(
            organization_id=self.organization_id, server_id=new_id(), name="shop", slug="shop",
            odoo_version="19.0", odoo_edition="community", environment_type="production",
            hostname="shop.localhost", status="running", sealed_env_vars="", sealed_database_password="",
            sealed_master_password="",
        )  # fmt: skip
        asleep: list[EndpointOrder] = []
        async with self.sessions() as session, session.begin():
            for _ in range(events):
                asleep += await write_event(session, "instance.deployed", instance)
                # Written and no longer needed: the session would look through all of them at each flush.
                session.expunge_all()
        return asleep, time.monotonic()

    def spent(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self.processes.items()}


@asynccontextmanager
async def house_of(home: Path) -> AsyncIterator[House]:
    """All that runs, for as long as the block lasts. Raises `Unavailable`."""
    ports, receiver_port = control_plane.Ports.free(), control_plane.Ports.free().api
    async with postgres.cluster(home / "postgres") as database:
        settings = control_plane.embedded_settings(home, ports).model_copy(
            update={
                "database_url": database.url,
                "allowed_networks": [IPv4Network("127.0.0.0/8")],
            }
        )
        await asyncio.to_thread(alembic.upgrade, configuration(database.url), "head")
        engine = open_database(database.url)
        async with (
            control_plane.services(settings, ports),
            _receiver(home, receiver_port) as receiver,
            running(home, "worker", environment=control_plane.environment_of(settings)) as worker,
        ):
            yield House(
                sessions=session_factory(engine),
                temporal=await Temporal.open(settings),
                receiver=receiver,
                processes={"worker": worker.pid, "postgres": database.pid, "temporal": child("temporal")},
                vault=Vault(settings.encryption_keys),
                organization_id=await _organization(session_factory(engine)),
            )
        await engine.dispose()


async def _organization(sessions: SessionFactory) -> UUID:
    organization = Organization(name="bench", slug="bench")
    async with sessions() as session, session.begin():
        session.add(organization)
    return organization.id


@asynccontextmanager
async def _receiver(home: Path, port: int) -> AsyncIterator[Receiver]:
    with (home / "receiver.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(Path(__file__).with_name("webhook_receiver.py")), f"--port={port}"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is ours to handle: it ends last.
            start_new_session=True,
        )
    try:
        async with aiohttp.ClientSession() as http:
            receiver = Receiver(http, f"http://127.0.0.1:{port}")
            await _until_ready(receiver)
            yield receiver
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _until_ready(receiver: Receiver) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            await receiver.count()
        except aiohttp.ClientError:
            if time.monotonic() > deadline:
                raise Unavailable("The receiver did not start.") from None
            await asyncio.sleep(0.05)
        else:
            return
