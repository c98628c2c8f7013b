"""One run: order while things break, mend, let it settle, audit, delete everything, audit again."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from deployerp.core.secrets import Vault
from deployerp.database.sessions import open_database, session_factory
from deployerp.domain.operations.lifecycles import DELETED
from deployerp.drivers.temporal import Temporal
from tests.chaos import records, world
from tests.chaos.actors import SECRET_VARIABLE, Customer, Order
from tests.chaos.audit import Finding, audit, audit_nothing, audit_secrets, targets
from tests.chaos.faults import Faults
from tests.chaos.images import Images
from tests.chaos.log import Log
from tests.chaos.programs import Plane
from tests.chaos.records import Records
from tests.chaos.world import World
from tests.conftest import new_client
from tests.e2e.plane import receiving

# Steps are tried again for ten minutes from their first failure.
_SETTLE_SECONDS = 780
_DELETE_SECONDS = 240
_LOOK_SECONDS = 2.0
# What ends by itself a moment after the last operation: a lock, a workflow that Temporal still lists.
_SECOND_LOOK_SECONDS = 15
_READY_SECONDS = 60


@dataclass(frozen=True)
class Extent:
    operations: int = 100

    @property
    def goals(self) -> dict[str, int]:
        """At least so many things were ordered and broken, or the run has proved nothing."""
        return {"operations": self.operations, "faults": self.operations // 4}


@dataclass(frozen=True)
class Done:
    """What was ordered and broken, by kind, until everything was mended."""

    operations: Counter[str]
    cancelled: Counter[str]
    refused: Counter[str]
    faults: Counter[str]

    @classmethod
    def of(cls, customer: Customer, faults: Faults) -> "Done":
        return cls(
            customer.done.copy(), customer.cancelled.copy(), customer.refused.copy(), faults.done.copy()
        )


class Run:
    def __init__(self, plane: Plane, http: httpx.AsyncClient, seed: int, extent: Extent, log: Log) -> None:
        self._plane = plane
        self._http = http
        self._seed = seed
        self._extent = extent
        self._log = log
        self._database = open_database(plane.settings.database_url)
        self._sessions = session_factory(self._database)

    async def result(self) -> dict[str, Any]:
        installation = await records.installation_of(self._sessions)
        try:
            return await self._result(installation)
        finally:
            await world.remove_nodes(installation)
            await self._database.dispose()

    async def _result(self, installation: str) -> dict[str, Any]:
        temporal = await Temporal.open(self._plane.settings)
        client = await new_client(self._http, self._plane.settings)
        customer = Customer(client, self._seed, self._log)
        faults = Faults(self._plane, installation, self._seed, self._log)
        async with receiving() as receiver:
            await self._until_ready()
            endpoint = await client.data(
                "POST", "/v1/webhook-endpoints", {"url": receiver.url, "types": ["*"]}
            )
            receiver.secret = endpoint["secret"]
            provider = await client.data("POST", "/v1/providers", {"name": "here", "kind": "docker"})
            customer.provider_id = provider["id"]
            images = Images(installation, self._plane.settings.home / "images.tar", self._log)
            await images.save(self._image_names())
            await self._trouble(customer, faults, images)
            done = Done.of(customer, faults)
            self._log.say(f"Everything is mended after {sum(faults.done.values())} faults; it settles")
            await self._settle(customer)
            findings = await self._audit(temporal, installation)
            self._log.say("All is deleted")
            await self._delete_all(customer)
            kept = await records.read(self._sessions, temporal)
            findings += audit_nothing(kept, await world.look(installation, {}))
            secrets = await records.secrets(self._sessions, Vault(self._plane.settings.encryption_keys))
            secrets |= {"token": client.token, "webhook secret": receiver.secret, "variable": SECRET_VARIABLE}
            secrets["encryption key"] = self._plane.settings.encryption_keys[0].get_secret_value()
            findings += audit_secrets(secrets, await self._texts())
        findings += [
            Finding("programs_died", f"{name} ended by itself with {status}")
            for name, program in self._plane.programs.items()
            for status in program.died
        ]
        return self._told(findings, done)

    def _told(self, findings: list[Finding], done: Done) -> dict[str, Any]:
        goals = {name: (goal, sum(getattr(done, name).values())) for name, goal in self._extent.goals.items()}
        reached = targets(findings, goals)
        texts = [f"{finding.target}: {finding.text}" for finding in findings]
        for text in texts:
            self._log.say(text)
        return {
            "chaos": "small",
            "ok": all(target["met"] for target in reached.values()),
            "seed": self._seed,
            "targets": reached,
            **{name: dict(counted) for name, counted in vars(done).items()},
            "findings": texts,
        }

    async def _trouble(self, customer: Customer, faults: Faults, images: Images) -> None:
        breaking = asyncio.create_task(faults.keep_breaking())
        loading = asyncio.create_task(images.keep_loading())
        ordering = asyncio.create_task(customer.order(self._extent.operations))
        try:
            await asyncio.wait((breaking, loading, ordering), return_when=asyncio.FIRST_COMPLETED)
            for endless in (breaking, loading):
                if endless.done():
                    # This raises what has ended it.
                    endless.result()
            await ordering
        finally:
            for task in (breaking, loading, ordering):
                task.cancel()
            await asyncio.gather(breaking, loading, ordering, return_exceptions=True)
            await faults.mend()

    def _image_names(self) -> list[str]:
        settings = self._plane.settings
        versions = [settings.odoo_image_for(version) for version in settings.odoo_versions]
        return [settings.caddy_image, settings.postgres_image, *versions]

    async def _settle(self, customer: Customer) -> None:
        """Waits until no operation and no step is open and every event is delivered, but not for ever."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        started: set[str] = set()
        while time.monotonic() < deadline:
            kept = await self._read()
            if not (kept.open_operations or kept.undelivered or kept.running_steps):
                break
            # An operation on an instance waits for its server, which somebody may have stopped meanwhile.
            waiting = {each.resource_id for each in kept.open_operations}
            needed = {each.server_id for each in kept.instances if each.id in waiting}
            for server in kept.servers:
                if server.id in needed - started and server.status == "stopped":
                    started.add(server.id)
                    await customer.place(
                        Order("start server", "POST", f"/v1/servers/{server.id}/actions", {"action": "start"})
                    )
            await asyncio.sleep(_LOOK_SECONDS)

    async def _audit(self, temporal: Temporal, installation: str) -> list[Finding]:
        """What two looks, some time apart, both find: what was passing was no fault."""
        first = audit(*await self._look(temporal, installation))
        if not first:
            return []
        await asyncio.sleep(_SECOND_LOOK_SECONDS)
        return audit(*await self._look(temporal, installation))

    async def _look(self, temporal: Temporal, installation: str) -> tuple[Records, World]:
        kept = await records.read(self._sessions, temporal)
        runs = {server.id for server in kept.servers if server.status == "running"}
        urls = {
            str(each.id): each.url
            for each in kept.instances
            if each.status == "running" and each.server_id in runs and each.url
        }
        return kept, await world.look(installation, urls)

    async def _delete_all(self, customer: Customer) -> None:
        """Instances of servers that run are deleted first, as a customer does; what is left goes by force."""
        kept = await self._read()
        runs = {server.id for server in kept.servers if server.status == "running"}
        for instance in kept.instances:
            if instance.status != DELETED and instance.server_id in runs:
                await customer.place(Order("delete instance", "DELETE", f"/v1/instances/{instance.id}"))
        await self._until_closed()
        kept = await self._read()
        holds = {each.server_id for each in kept.instances if each.status != DELETED}
        for server in kept.servers:
            if server.status != DELETED:
                query = "?force=true" if server.id in holds else ""
                await customer.place(Order("delete server", "DELETE", f"/v1/servers/{server.id}{query}"))
        await self._until_closed()

    async def _until_closed(self) -> None:
        deadline = time.monotonic() + _DELETE_SECONDS
        while (await self._read()).open_operations and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)

    async def _read(self) -> Records:
        return await records.read(self._sessions, await Temporal.open(self._plane.settings))

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while (await self._http.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline, "the control plane is not ready: its logs tell why"
            await asyncio.sleep(0.2)

    async def _texts(self) -> dict[str, str]:
        logs = {path.name: path.read_text(errors="replace") for path in (*self._plane.logs, self._log.path)}
        return logs | await records.texts(self._sessions)
