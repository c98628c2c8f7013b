"""The steps of operations on instances; each looks at the world first, so each can be repeated."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import aiohttp
from sqlalchemy import select
from sqlmodel import col
from temporalio import activity

from deployerp.activities.records import Records
from deployerp.activities.steps import prepared_databases
from deployerp.activities.steps.crashes import Watch, program
from deployerp.activities.steps.disks import naming_full_disks
from deployerp.activities.steps.hosts import Hosts
from deployerp.activities.steps.instance_parts import (
    Parts,
    containers_of,
    instance_labels,
    parts_of,
    status_of_containers,
)
from deployerp.activities.steps.interceptor import current_run, tell
from deployerp.activities.steps.ports import naming_holders
from deployerp.activities.steps.prepared_databases import SUPERUSER, run_sql, start_postgres
from deployerp.activities.steps.release_images import (
    RecordedImage,
    RecordedImages,
    bring_images,
    check_major,
    recorded_images,
    references,
)
from deployerp.activities.steps.routes import route_of, scheme_of, url_of
from deployerp.activities.steps.waiting import until_it_answers
from deployerp.core.errors import ImageUnavailable, NodeGone, NotHealthy
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.core.uninterrupted import uninterrupted
from deployerp.domain.instances import Instance, open_env_vars
from deployerp.domain.operations.messages import OperationOrder
from deployerp.domain.releases import Release, active_release
from deployerp.domain.servers import Server
from deployerp.drivers import caddy
from deployerp.drivers.engine.containers import ContainerSpec
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.odoo import odoo
from deployerp.drivers.server.host import Host

_START_SECONDS = 180
_PROXY_SECONDS = 30
_OTHER_STEP_SECONDS = 0.5


@dataclass
class Site:
    """An instance on its server, connected."""

    instance: Instance
    release: Release
    server: Server
    host: Host
    engine: Engine
    parts: Parts


class InstanceActivities:
    """Deploys, starts, stops and removes the containers of instances."""

    def __init__(self, records: Records, hosts: Hosts, vault: Vault, settings: Settings) -> None:
        self._records = records
        self._hosts = hosts
        self._vault = vault
        self._settings = settings

    @activity.defn
    async def pull_images(self, order: OperationOrder) -> None:
        """Brings the images that the instance runs, and records them; its deploy chooses them.

        Raises `ImageUnavailable`, `ImageRefused`.
        """
        async with self._host(order) as (instance, release, _, host):
            recorded = recorded_images(release) if instance.deployed_at else None
            wanted = recorded or self._set_images(instance)
            images = await bring_images(host, wanted)
            if images.postgres != wanted.postgres:
                engine = await host.engine()
                await check_major(engine, parts_of(instance, release, await references(engine, images)))
            if images != recorded:
                await self._records.note(order, release, **images.columns())
        tell("They are there")

    @activity.defn
    async def prepare_database(self, order: OperationOrder) -> None:
        async with self._site(order) as site:
            await prepared_databases.prepare(site.host, site.instance, site.parts.images)

    @activity.defn
    async def create_network(self, order: OperationOrder) -> None:
        async with self._site(order) as site:
            await site.engine.ensure_network(site.parts.network, site.parts.labels)

    @activity.defn
    async def create_volumes(self, order: OperationOrder) -> None:
        """Copies the prepared database into volumes of the instance's own."""
        async with self._site(order) as site:
            parts, engine = site.parts, site.engine
            if parts.postgres in {each.name for each in await engine.find_containers(parts.labels)}:
                # PostgreSQL has run on them: they are the instance's own by now.
                return
            prepared = await prepared_databases.prepare(site.host, site.instance, parts.images)
            copies = {prepared.pgdata: parts.volumes.pgdata, prepared.filestore: parts.volumes.filestore}
            for source, target in copies.items():
                await engine.copy_volume(source, target, parts.images.postgres, parts.labels)

    @activity.defn
    async def start_postgres(self, order: OperationOrder) -> None:
        async with self._site(order) as site:
            await site.engine.ensure_container(site.parts.postgres_spec())
            await start_postgres(site.host, site.engine, site.parts, self._secrets(site.instance))

    @activity.defn
    async def personalise_database(self, order: OperationOrder) -> None:
        """Gives a copied database passwords, an identity and an administrator of its own."""
        async with self._site(order) as site:
            instance = site.instance
            passwords = odoo.set_passwords_sql(self._vault.open(instance.sealed_database_password))
            await run_sql(site.engine, site.parts, passwords, database=SUPERUSER)
            if instance.sealed_admin_password is None:
                # It has been read, so it may have been changed in Odoo: not ours to set any more.
                return
            url = url_of(instance, site.server)
            admin_password = self._vault.open(instance.sealed_admin_password)
            # To hash the password takes long enough to keep the worker from its heartbeats.
            statements = await uninterrupted(asyncio.to_thread(odoo.personalise_sql, admin_password, url))
            await run_sql(site.engine, site.parts, statements)
            await self._records.note(order, instance, url=url)

    @activity.defn
    async def start_odoo(self, order: OperationOrder) -> None:
        async with self._site(order) as site:
            await site.engine.ensure_container(self._odoo_spec(site))
            await site.engine.start_container(site.parts.odoo)

    @activity.defn
    async def wait_for_odoo(self, order: OperationOrder) -> None:
        """Waits until the engine runs Odoo and it answers.

        Raises `NotHealthy`, `ContainerFailed`, `DiskFull`.
        """
        async with self._site(order) as site:
            watch = self._watch(site)

            async def look() -> None:
                address = await _address(site, watch)
                socket = await site.host.forward_port(address, odoo.HTTP_PORT)
                async with aiohttp.UnixConnector(socket) as connector:
                    await odoo.check_health(connector)

            await until_it_answers(look, seconds=_START_SECONDS)

    @activity.defn
    async def create_route(self, order: OperationOrder) -> None:
        async with self._site(order) as site, self._proxy(site.host) as proxy:
            await site.engine.connect_network(caddy.NAME, site.parts.network)
            await proxy.ensure_route(route_of(site.instance, site.release))

    @activity.defn
    async def check_login(self, order: OperationOrder) -> None:
        """Opens the login page through the proxy, as a browser would.

        Raises `NotHealthy`, `ContainerFailed`, `DiskFull`.
        """
        async with self._site(order) as site:
            watch = self._watch(site)
            scheme = scheme_of(site.instance)
            socket = await site.host.forward_port("127.0.0.1", 443 if scheme == "https" else 80)

            async def look() -> None:
                await watch.look(site.parts.postgres, site.parts.odoo)
                async with aiohttp.UnixConnector(socket) as connector:
                    await odoo.check_login(
                        connector, f"{scheme}://{site.instance.hostname}", site.instance.hostname
                    )

            await until_it_answers(look, seconds=_START_SECONDS)
        tell(site.instance.url or "")

    @activity.defn
    async def stop_containers(self, order: OperationOrder) -> None:
        """Stops Odoo, then its PostgreSQL."""
        async with self._host(order) as (_, release, _, host):
            engine = await host.engine()
            for container in containers_of(release):
                await engine.stop_container(container)

    @activity.defn
    async def remove_instance(self, order: OperationOrder) -> None:
        """Removes all that carries the instance's label, and its route, once no other step adds to it."""
        own = current_run(order, "remove_instance")
        while await self._records.other_step_runs(order, own):
            tell("Waits for the end of a step that may still be making containers")
            await asyncio.sleep(_OTHER_STEP_SECONDS)
        instance = await self._records.get(Instance, order.resource_id)
        server = await self._records.get(Server, instance.server_id)
        if server.node_id is None:
            tell("The server is gone, and the instance with it")
            return
        if server.status == "stopped":
            # Only a deletion by force comes here.
            tell("The server is stopped: what is left of the instance is removed when it starts")
            return
        async with self._hosts.open(server) as host:
            async with self._proxy(host) as proxy:
                await proxy.remove_route(str(instance.id))
            engine = await host.engine()
            await engine.remove_labelled(instance_labels(instance.id))

    @activity.defn
    async def observe_instance(self, order: OperationOrder) -> str | None:
        """The status in which the containers are now. Raises the errors of `Hosts` and `Engine`."""
        try:
            async with self._host(order) as (instance, release, _, host):
                found = await (await host.engine()).find_containers(instance_labels(instance.id))
        except NodeGone:
            return "failed"
        return status_of_containers(release, found)

    def _watch(self, site: Site) -> Watch:
        return Watch(site.host, site.engine, site.parts, self._secrets(site.instance))

    def _secrets(self, instance: Instance) -> list[str]:
        """All that a log of the instance must not show."""
        passwords = (
            instance.sealed_database_password,
            instance.sealed_master_password,
            instance.sealed_admin_password,
        )
        variables = open_env_vars(self._vault, instance).values()
        return [
            *(self._vault.open(password) for password in passwords if password is not None),
            *(variable.value for variable in variables if variable.secret),
        ]

    def _odoo_spec(self, site: Site) -> ContainerSpec:
        instance = site.instance
        configuration = odoo.Configuration(
            capacity=site.parts.capacity,
            database_password=self._vault.open(instance.sealed_database_password),
            master_password=self._vault.open(instance.sealed_master_password),
        )
        variables = open_env_vars(self._vault, instance)
        return site.parts.odoo_spec(configuration, {name: each.value for name, each in variables.items()})

    @asynccontextmanager
    async def _site(self, order: OperationOrder) -> AsyncIterator[Site]:
        async with self._host(order) as (instance, release, server, host):
            images = recorded_images(release)
            if images is None:
                raise ImageUnavailable("The instance has no images yet: retry its deploy.")
            engine = await host.engine()
            parts = parts_of(instance, release, await references(engine, images))
            yield Site(instance, release, server, host, engine, parts)

    @asynccontextmanager
    async def _host(self, order: OperationOrder) -> AsyncIterator[tuple[Instance, Release, Server, Host]]:
        """The instance, its active release, and its server, connected."""
        query = (
            select(Instance, Release, Server)
            .join(Release, active_release(col(Instance.id)))
            .join(Server, col(Server.id) == col(Instance.server_id))
            .where(col(Instance.id) == UUID(order.resource_id))
        )
        [(instance, release, server)] = await self._records.rows(query)
        async with self._hosts.open(server) as host, naming_full_disks(host):
            yield instance, release, server, host

    def _set_images(self, instance: Instance) -> RecordedImages:
        """What the settings say at the first deploy."""
        return RecordedImages(
            RecordedImage(self._settings.postgres_image),
            RecordedImage(self._settings.odoo_image_for(instance.odoo_version)),
        )

    @asynccontextmanager
    async def _proxy(self, host: Host) -> AsyncIterator[caddy.Caddy]:
        # A proxy that somebody stopped would keep an undo from ever coming to its end.
        async with naming_holders(host):
            await (await host.engine()).start_container(caddy.NAME)
        async with caddy.Caddy(await host.forward_socket(caddy.ADMIN_SOCKET)) as proxy:
            await until_it_answers(proxy.check_ready, seconds=_PROXY_SECONDS)
            yield proxy


async def _address(site: Site, watch: Watch) -> str:
    """Where Odoo's container is on the instance's network. Raises `NotHealthy` while it does not run."""
    states = await watch.look(site.parts.postgres, site.parts.odoo)
    for state in states.values():
        if state.exit_code is not None:
            raise NotHealthy(
                f"{program(state)} ended with exit status {state.exit_code}; its container is {state.state}."
            )
    container = states.get(site.parts.odoo)
    address = container and container.networks.get(site.parts.network)
    if not address:
        raise NotHealthy("Odoo's container does not run yet.")
    return address
