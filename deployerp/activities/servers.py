"""The steps of operations on servers; each looks at the world first, so each can be repeated."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from temporalio import activity

from deployerp.activities.hosts import Hosts, bring_image
from deployerp.activities.interceptor import tell
from deployerp.activities.records import Records
from deployerp.activities.waiting import until_it_answers
from deployerp.domain.errors import HostUnreachable, ProviderRefused
from deployerp.domain.messages import OperationOrder
from deployerp.domain.providers import Provider
from deployerp.domain.secrets import Vault
from deployerp.domain.servers import Server
from deployerp.domain.settings import Settings
from deployerp.drivers import caddy, user_data
from deployerp.drivers.cloud import Cloud, Clouds, Node, NodeSpec, honours_client_token, uses_cloud_init
from deployerp.drivers.host import generate_key_pair, public_key_of

SERVER_TAG = "deployerp.server"
_POLL_SECONDS = 0.5
# A cloud's list may not show a node at once after it was made.
_LOOK_AGAIN_SECONDS = 5
_ENGINE_SECONDS = 60
_HOST_PREPARATION_SECONDS = 600


class ServerActivities:
    """Creates, prepares, stops, starts and destroys the machines of servers."""

    def __init__(
        self, records: Records, clouds: Clouds, hosts: Hosts, vault: Vault, settings: Settings
    ) -> None:
        self._records = records
        self._clouds = clouds
        self._hosts = hosts
        self._vault = vault
        self._settings = settings

    @activity.defn
    async def prepare_keys(self, order: OperationOrder) -> None:
        """Writes down the intent: the keys by which the machine and we shall know each other."""
        server = await self._records.server(order.resource_id)
        if server.sealed_host_private_key and server.sealed_login_private_key:
            return
        host, login = generate_key_pair(f"server-{server.id}"), generate_key_pair("deployerp")
        await self._records.note(
            server,
            host_key=host.public,
            sealed_host_private_key=self._vault.seal(host.private),
            sealed_login_private_key=self._vault.seal(login.private),
        )

    @activity.defn
    async def create_node(self, order: OperationOrder) -> None:
        """Finds the server's node by its tag or creates it. Raises the errors of `Cloud`."""
        server = await self._records.server(order.resource_id)
        provider = await self._records.provider(server.provider_id)
        async with self._cloud(server) as cloud:
            await _clear(cloud, server)
            node = await _find(cloud, server)
            if node is None and activity.info().attempt > 1 and not honours_client_token(provider.kind):
                # The answer to the last try may be what was lost, not its node.
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
                node = await _find(cloud, server)
            if node is None:
                node = await cloud.create_node(self._spec(server, provider, order))
        await self._records.note(server, node_id=node.id)
        tell(f"Machine {node.id}")

    @activity.defn
    async def start_node(self, order: OperationOrder) -> None:
        server = await self._records.server(order.resource_id)
        async with self._cloud(server) as cloud:
            node = await _existing(cloud, server)
            if node.state != "running":
                await cloud.start_node(node.id)

    @activity.defn
    async def stop_node(self, order: OperationOrder) -> None:
        """Stops the machine and waits until it is."""
        server = await self._records.server(order.resource_id)
        async with self._cloud(server) as cloud:
            node = await _existing(cloud, server)
            if node.state != "stopped":
                await cloud.stop_node(node.id)
            while (await _existing(cloud, server)).state != "stopped":
                await asyncio.sleep(_POLL_SECONDS)

    @activity.defn
    async def reboot_node(self, order: OperationOrder) -> None:
        server = await self._records.server(order.resource_id)
        async with self._cloud(server) as cloud:
            await cloud.reboot_node((await _existing(cloud, server)).id)

    @activity.defn
    async def wait_for_node(self, order: OperationOrder) -> None:
        """Waits until the machine runs and has an address, and writes it down."""
        server = await self._records.server(order.resource_id)
        async with self._cloud(server) as cloud:
            while (node := await _existing(cloud, server)).state != "running" or not node.address:
                if node.state == "failed":
                    raise ProviderRefused(
                        f"The provider has given up the machine of server {server.name}: retry the operation,"
                        " which makes another one."
                    )
                tell(f"The machine is {node.state}")
                await asyncio.sleep(_POLL_SECONDS)
        await self._records.note(
            server,
            address=node.address,
            ssh_port=node.ssh_port,
            http_port=node.http_port,
            https_port=node.https_port,
        )
        tell(f"It runs at {node.address}")

    @activity.defn
    async def wait_for_ssh(self, order: OperationOrder) -> None:
        """Waits until the machine answers with the pinned host key. Raises `HostKeyMismatch` at once."""
        server = await self._records.server(order.resource_id)
        while True:
            try:
                async with self._hosts.open(server):
                    return
            except HostUnreachable as error:
                tell(error.message)
                await asyncio.sleep(_POLL_SECONDS)

    @activity.defn
    async def prepare_host(self, order: OperationOrder) -> None:
        """Runs the user data over SSH: the same script as at first boot, which changes nothing twice."""
        server = await self._records.server(order.resource_id)
        async with self._hosts.open(server) as host:
            # Through standard input: it holds the host's private key.
            await host.run(
                ["sh", "-s"], input=self._user_data(server).encode(), timeout=_HOST_PREPARATION_SECONDS
            )

    @activity.defn
    async def check_engine(self, order: OperationOrder) -> None:
        """Asks the Docker engine for its version and writes it down."""
        server = await self._records.server(order.resource_id)
        async with self._hosts.open(server) as host:
            engine = await host.engine()
            version = await until_it_answers(engine.version, seconds=_ENGINE_SECONDS)
        await self._records.note(server, engine_version=version)
        tell(f"Docker {version}")

    @activity.defn
    async def start_caddy(self, order: OperationOrder) -> None:
        """Runs the server's one Caddy."""
        server = await self._records.server(order.resource_id)
        image = self._settings.caddy_image
        async with self._hosts.open(server) as host:
            await bring_image(host, image)
            await caddy.ensure_caddy(await host.engine(), caddy.container_spec(image))
            async with caddy.Caddy(await host.forward_socket(caddy.ADMIN_SOCKET)) as proxy:
                await until_it_answers(proxy.check_ready, seconds=_ENGINE_SECONDS)

    @activity.defn
    async def destroy_node(self, order: OperationOrder) -> None:
        """Destroys every node that carries the server's tag and waits until none is left."""
        server = await self._records.server(order.resource_id)
        async with self._cloud(server) as cloud:
            while await _destroy(cloud, await cloud.find_nodes(_tags(server))):
                await asyncio.sleep(_POLL_SECONDS)
        await self._records.note(server, node_id=None, address=None)

    @asynccontextmanager
    async def _cloud(self, server: Server) -> AsyncIterator[Cloud]:
        provider = await self._records.provider(server.provider_id)
        yield self._clouds.open(provider.kind, self._vault.open_mapping(provider.sealed_credentials))

    def _spec(self, server: Server, provider: Provider, order: OperationOrder) -> NodeSpec:
        script = self._user_data(server)
        return NodeSpec(
            name=f"deployerp-{server.id}",
            size=server.size,
            location=server.location,
            image=server.image,
            user_data=user_data.cloud_config(script) if uses_cloud_init(provider.kind) else script,
            tags=_tags(server) | {"deployerp.organization": str(server.organization_id)},
            # Not the server's id: a cloud would answer a retry with the node that the first try undid.
            client_token=order.operation_id,
        )

    def _user_data(self, server: Server) -> str:
        if not (server.sealed_host_private_key and server.sealed_login_private_key):
            raise ProviderRefused(f"Server {server.name} has no keys yet: retry its provision.")
        return user_data.render(
            self._vault.open(server.sealed_host_private_key),
            public_key_of(self._vault.open(server.sealed_login_private_key)),
        )


def _tags(server: Server) -> dict[str, str]:
    return {SERVER_TAG: str(server.id)}


async def _clear(cloud: Cloud, server: Server) -> None:
    """Destroys what an attempt that broke off has left, so that nobody waits for it to run."""
    while await _destroy(cloud, [n for n in await cloud.find_nodes(_tags(server)) if n.state == "failed"]):
        await asyncio.sleep(_POLL_SECONDS)


async def _destroy(cloud: Cloud, nodes: Sequence[Node]) -> bool:
    """Asks for the end of nodes; says whether there were any."""
    for node in nodes:
        await cloud.destroy_node(node.id)
    return bool(nodes)


async def _find(cloud: Cloud, server: Server) -> Node | None:
    nodes = await cloud.find_nodes(_tags(server))
    return nodes[0] if nodes else None


async def _existing(cloud: Cloud, server: Server) -> Node:
    node = await _find(cloud, server)
    if node is None:
        raise ProviderRefused(
            f"The provider no longer has the machine of server {server.name}:"
            " delete the server and create it anew."
        )
    return node
