"""The steps of operations on instances; each looks at the world first, so each can be repeated."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from temporalio import activity

from deployerp.activities import prepared_databases
from deployerp.activities.hosts import Hosts, bring_image
from deployerp.activities.instance_parts import Images, Parts, instance_labels, parts_of
from deployerp.activities.interceptor import tell
from deployerp.activities.prepared_databases import SUPERUSER, run_sql, start_postgres
from deployerp.activities.records import Records
from deployerp.activities.waiting import until_it_answers
from deployerp.domain.errors import CommandFailed, NotHealthy
from deployerp.domain.instances import Instance, open_env_vars
from deployerp.domain.messages import OperationOrder
from deployerp.domain.secrets import Vault
from deployerp.domain.servers import Server
from deployerp.domain.settings import Settings
from deployerp.drivers import caddy, odoo
from deployerp.drivers.containers import ContainerSpec
from deployerp.drivers.engine import Engine
from deployerp.drivers.host import Host

_START_SECONDS = 180
_PROXY_SECONDS = 30


@dataclass
class Site:
    """An instance on its server, connected."""

    instance: Instance
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
        async with self._site(order) as site:
            for image in (site.parts.images.postgres, site.parts.images.odoo):
                await bring_image(site.host, image)
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
            await start_postgres(site.engine, site.parts)

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
            await run_sql(site.engine, site.parts, odoo.personalise_sql(admin_password, url))
            await self._records.note(instance, url=url)

    @activity.defn
    async def start_odoo(self, order: OperationOrder) -> None:
        async with self._site(order) as site:
            await site.engine.ensure_container(self._odoo_spec(site))
            await site.engine.start_container(site.parts.odoo)

    @activity.defn
    async def wait_for_odoo(self, order: OperationOrder) -> None:
        """Waits until the engine runs Odoo and it answers. Raises `NotHealthy`, `CommandFailed`."""
        async with self._site(order) as site:

            async def look() -> None:
                address = await _address(site)
                socket = await site.host.forward_port(address, odoo.HTTP_PORT)
                async with aiohttp.UnixConnector(socket) as connector:
                    await odoo.check_health(connector)

            await until_it_answers(look, seconds=_START_SECONDS)

    @activity.defn
    async def create_route(self, order: OperationOrder) -> None:
        async with self._site(order) as site, self._proxy(site.host) as proxy:
            await site.engine.connect_network(caddy.NAME, site.parts.network)
            await proxy.ensure_route(_route(site))

    @activity.defn
    async def check_login(self, order: OperationOrder) -> None:
        """Opens the login page through the proxy, as a browser would. Raises `NotHealthy`."""
        async with self._site(order) as site:
            scheme = _scheme(site.instance)
            socket = await site.host.forward_port("127.0.0.1", 443 if scheme == "https" else 80)

            async def look() -> None:
                async with aiohttp.UnixConnector(socket) as connector:
                    await odoo.check_login(
                        connector, f"{scheme}://{site.instance.hostname}", site.instance.hostname
                    )

            await until_it_answers(look, seconds=_START_SECONDS)
        tell(site.instance.url or "")

    @activity.defn
    async def stop_containers(self, order: OperationOrder) -> None:
        """Stops Odoo, then its PostgreSQL: the other way round Odoo would see its database vanish."""
        async with self._site(order) as site:
            for container in (site.parts.odoo, site.parts.postgres):
                await site.engine.stop_container(container)

    @activity.defn
    async def remove_instance(self, order: OperationOrder) -> None:
        """Removes all that carries the instance's label, and its route."""
        instance = await self._records.instance(order.resource_id)
        server = await self._records.server(instance.server_id)
        if server.node_id is None:
            tell("The server is gone, and the instance with it")
            return
        async with self._hosts.open(server) as host:
            async with self._proxy(host) as proxy:
                await proxy.remove_route(str(instance.id))
            engine = await host.engine()
            await engine.remove_labelled(instance_labels(instance.id))

    def _odoo_spec(self, site: Site) -> ContainerSpec:
        instance = site.instance
        configuration = odoo.Configuration(
            capacity=odoo.CAPACITIES[instance.environment_type],
            database_password=self._vault.open(instance.sealed_database_password),
            master_password=self._vault.open(instance.sealed_master_password),
        )
        variables = open_env_vars(self._vault, instance)
        return site.parts.odoo_spec(configuration, {name: each.value for name, each in variables.items()})

    @asynccontextmanager
    async def _site(self, order: OperationOrder) -> AsyncIterator[Site]:
        instance = await self._records.instance(order.resource_id)
        server = await self._records.server(instance.server_id)
        images = Images(
            postgres=self._settings.postgres_image,
            odoo=self._settings.odoo_image_for(instance.odoo_version),
        )
        async with self._hosts.open(server) as host:
            yield Site(instance, server, host, await host.engine(), parts_of(instance, images))

    @asynccontextmanager
    async def _proxy(self, host: Host) -> AsyncIterator[caddy.Caddy]:
        # A proxy that somebody stopped would keep an undo from ever coming to its end.
        await (await host.engine()).start_container(caddy.NAME)
        async with caddy.Caddy(await host.forward_socket(caddy.ADMIN_SOCKET)) as proxy:
            await until_it_answers(proxy.check_ready, seconds=_PROXY_SECONDS)
            yield proxy


async def _address(site: Site) -> str:
    """Where Odoo's container is on the instance's network. Raises `CommandFailed` when it has ended."""
    for container in await site.engine.find_containers(site.parts.labels):
        if container.name == site.parts.odoo:
            if container.state in ("exited", "dead"):
                raise CommandFailed(
                    f"Odoo ended with exit status {container.exit_code}: its container's log tells why.",
                )
            if address := container.networks.get(site.parts.network):
                return address
    raise NotHealthy("Odoo's container does not run yet.")


def _route(site: Site) -> caddy.Route:
    workers = odoo.CAPACITIES[site.instance.environment_type].workers
    return caddy.Route(
        id=str(site.instance.id),
        hosts=[site.instance.hostname],
        upstream=f"{site.parts.odoo}:{odoo.HTTP_PORT}",
        websocket_upstream=f"{site.parts.odoo}:{odoo.WEBSOCKET_PORT}" if workers else None,
        https=_scheme(site.instance) == "https",
    )


def _scheme(instance: Instance) -> str:
    # No authority certifies names under localhost, and browsers trust them without.
    return "http" if instance.hostname.endswith(".localhost") else "https"


def url_of(instance: Instance, server: Server) -> str:
    """Where people find the instance: the server's public port is part of it unless it is the usual one."""
    scheme = _scheme(instance)
    port, usual = (server.https_port, 443) if scheme == "https" else (server.http_port, 80)
    return f"{scheme}://{instance.hostname}" + ("" if port == usual else f":{port}")
