"""The steps of operations on servers; each looks at the world first, so each can be repeated."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from temporalio import activity

from deployerp.activities.records import Records
from deployerp.activities.steps.hosts import Hosts, bring_image
from deployerp.activities.steps.instance_parts import INSTANCE_LABEL, status_of_containers
from deployerp.activities.steps.interceptor import current_attempt, current_run, tell
from deployerp.activities.steps.jitter import jittered
from deployerp.activities.steps.nodes import (
    LOOK_AGAIN_SECONDS,
    Nodes,
    find_server_node,
    find_server_nodes,
    node_gone,
    require_server_node,
    tags_of,
)
from deployerp.activities.steps.ports import naming_holders
from deployerp.activities.steps.routes import route_of, routed_instances
from deployerp.activities.steps.waiting import growing_pauses, rest, until_it_answers
from deployerp.core.errors import (
    CommandFailed,
    DeployError,
    HostUnreachable,
    NotHealthy,
    OperationClosed,
    ProviderRefused,
    ProviderThrottled,
)
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.core.uninterrupted import uninterrupted
from deployerp.domain.installations import INSTALLATION_TAG
from deployerp.domain.instances import INSTANCE, Instance
from deployerp.domain.operations.messages import OperationOrder
from deployerp.domain.providers import Provider
from deployerp.domain.servers import Server
from deployerp.drivers import caddy
from deployerp.drivers.clouds.cloud import (
    Cloud,
    Node,
    NodeSpec,
    honours_client_token,
    is_local,
    uses_cloud_init,
)
from deployerp.drivers.server import user_data
from deployerp.drivers.server.host import generate_key_pair, public_key_of

# From the first pause between two looks at a machine to the longest. Clouds count the calls of an account,
# and sshd bans addresses that connect too often.
_LOCAL_PAUSES = (0.25, 2.0)
_CLOUD_PAUSES = (2.0, 15.0)
# So long a node may be missing from the cloud's list after the cloud has made it.
_LISTED_SECONDS = 60
_ENGINE_SECONDS = 60
_OBSERVATION_SECONDS = 15
_REBOOT_SECONDS = 300
_HOST_PREPARATION_SECONDS = 600
T = TypeVar("T")


class ServerActivities:
    """Creates, prepares, stops, starts and destroys the machines of servers."""

    def __init__(
        self, records: Records, nodes: Nodes, hosts: Hosts, vault: Vault, settings: Settings
    ) -> None:
        self._records = records
        self._nodes = nodes
        self._hosts = hosts
        self._vault = vault
        self._settings = settings

    @activity.defn
    async def prepare_keys(self, order: OperationOrder) -> None:
        """Writes down the intent: the keys by which the machine and we shall know each other."""
        server = await self._records.get(Server, order.resource_id)
        if server.sealed_host_private_key and server.sealed_login_private_key:
            return
        host, login = generate_key_pair(f"server-{server.id}"), generate_key_pair("deployerp")
        await self._records.note(
            order,
            server,
            host_key=host.public,
            sealed_host_private_key=self._vault.seal(host.private),
            sealed_login_private_key=self._vault.seal(login.private),
        )

    @activity.defn
    async def create_node(self, order: OperationOrder) -> None:
        """Finds the server's node by its tag or creates it. Raises the errors of `Cloud`."""
        server = await self._records.get(Server, order.resource_id)
        provider = await self._records.get(Provider, server.provider_id)
        async with self._nodes.open_cloud(server) as cloud:
            await _clear(cloud, server, _pauses(provider))
            node = await find_server_node(cloud, server)
            if node is None and current_attempt() > 1 and not honours_client_token(provider.kind):
                # The answer to the last try may be what was lost, not its node.
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                node = await find_server_node(cloud, server)
            if node is None:
                # Closed meanwhile or not: what looks for running steps must know of this one from here on.
                await self._records.renew_step(current_run(order, "create_node"))
                node = await uninterrupted(
                    self._create(cloud, server, await self._spec(server, provider, order), order)
                )
            else:
                await self._records.note(order, server, node_id=node.id)
        tell(f"Machine {node.id}")

    @activity.defn
    async def start_node(self, order: OperationOrder) -> None:
        server = await self._records.get(Server, order.resource_id)
        async with self._nodes.open_cloud(server) as cloud:
            node = await require_server_node(cloud, server)
            if node.state != "running":
                await cloud.start_node(node.id)

    @activity.defn
    async def stop_node(self, order: OperationOrder) -> None:
        """Stops the machine and waits until it is."""
        server = await self._records.get(Server, order.resource_id)
        provider = await self._records.get(Provider, server.provider_id)
        async with self._nodes.open_cloud(server) as cloud:
            node = await require_server_node(cloud, server)
            if node.state != "stopped":
                await cloud.stop_node(node.id)

            async def is_stopped() -> bool:
                return (await require_server_node(cloud, server)).state == "stopped"

            await _until(is_stopped, _pauses(provider))
        self._hosts.drop(server)

    @activity.defn
    async def reboot_node(self, order: OperationOrder) -> None:
        """Reboots the machine and waits until it has booted again. Raises `NotHealthy` when it does not."""
        server = await self._records.get(Server, order.resource_id)
        provider = await self._records.get(Provider, server.provider_id)
        before = await self._boot_of(server)
        async with self._nodes.open_cloud(server) as cloud:
            await cloud.reboot_node((await require_server_node(cloud, server)).id)
        self._hosts.drop(server)
        if before is None:
            # That may be why it is rebooted.
            tell("The machine did not answer before: whether it has booted again cannot be told")
            return

        async def has_booted() -> bool:
            return await self._boot_of(server) not in (None, before)

        try:
            async with asyncio.timeout(_REBOOT_SECONDS):
                await _until(has_booted, _pauses(provider))
        except TimeoutError as error:
            raise NotHealthy(
                f"The machine of server {server.name} has not booted again {_REBOOT_SECONDS:g} s after its"
                " reboot was asked for: look at its console at the provider, then retry the operation."
            ) from error
        tell("It has booted again")

    @activity.defn
    async def wait_for_node(self, order: OperationOrder) -> None:
        """Waits until the machine runs and has an address, and writes it down."""
        server = await self._records.get(Server, order.resource_id)
        provider = await self._records.get(Provider, server.provider_id)
        async with self._nodes.open_cloud(server) as cloud:
            node = await _until(_look_for_running(cloud, server), _pauses(provider))
        await self._records.note(
            order,
            server,
            address=node.address,
            ssh_port=node.ssh_port,
            http_port=node.http_port,
            https_port=node.https_port,
        )
        tell(f"It runs at {node.address}")

    @activity.defn
    async def wait_for_ssh(self, order: OperationOrder) -> None:
        """Waits until the machine answers with the pinned host key and forwards sockets.

        Raises `HostKeyMismatch`, `HostAuthenticationFailed` and `HostForwardingForbidden` at once.
        """
        server = await self._records.get(Server, order.resource_id)
        provider = await self._records.get(Provider, server.provider_id)

        async def answers() -> bool:
            try:
                async with self._hosts.open(server) as host:
                    await host.check_forwarding()
            except HostUnreachable as error:
                tell(error.message)
                return False
            return True

        await _until(answers, _pauses(provider))
        tell("It answers over SSH")

    @activity.defn
    async def prepare_host(self, order: OperationOrder) -> None:
        """Runs the user data over SSH: the same script as at first boot, which changes nothing twice."""
        server = await self._records.get(Server, order.resource_id)
        async with self._hosts.open(server) as host:
            # Through standard input: it holds the host's private key.
            await host.run(
                ["sh", "-s"], input=self._user_data(server).encode(), timeout=_HOST_PREPARATION_SECONDS
            )

    @activity.defn
    async def check_engine(self, order: OperationOrder) -> None:
        """Asks the Docker engine for its version and writes it down."""
        server = await self._records.get(Server, order.resource_id)
        async with self._hosts.open(server) as host:
            engine = await host.engine()
            version = await until_it_answers(engine.version, seconds=_ENGINE_SECONDS)
        await self._records.note(order, server, engine_version=version)
        tell(f"Docker {version}")

    @activity.defn
    async def start_caddy(self, order: OperationOrder) -> None:
        """Runs the server's one Caddy, with the routes that the records know: its own may be lost or old."""
        server = await self._records.get(Server, order.resource_id)
        image = self._settings.caddy_image
        async with self._hosts.open(server) as host:
            await bring_image(host, image)
            async with naming_holders(host):
                await caddy.ensure_caddy(await host.engine(), caddy.container_spec(image))
            async with caddy.Caddy(await host.forward_socket(caddy.ADMIN_SOCKET)) as proxy:
                await until_it_answers(proxy.check_ready, seconds=_ENGINE_SECONDS)
                routed = await self._records.rows(routed_instances(server))
                await proxy.set_routes([route_of(instance, release) for instance, release in routed])

    @activity.defn
    async def destroy_node(self, order: OperationOrder) -> None:
        """Destroys the server's nodes, those with its tag and the recorded one, until none is left.

        While a step of another operation may still be making one, it goes on looking.
        """
        server = await self._records.get(Server, order.resource_id)
        provider = await self._records.get(Provider, server.provider_id)
        async with self._nodes.open_cloud(server) as cloud:
            looks: list[bool] = []

            async def is_destroyed() -> bool:
                looks.append(await self._destroyed(cloud, order))
                return looks[-1]

            await _until(is_destroyed, _pauses(provider))
            recorded = (await self._records.get(Server, order.resource_id)).node_id
            if recorded:
                if looks == [True]:
                    tell(f"The provider did not have machine {recorded} any more")
                # A machine that others have removed may have left its volume.
                await cloud.destroy_node(recorded)
        self._hosts.drop(server)
        await self._records.note(order, server, node_id=None, address=None)

    async def _boot_of(self, server: Server) -> str | None:
        """What tells the machine's boot from others; None while it does not answer. Raises `NodeGone`."""
        try:
            async with self._hosts.open(server) as host:
                return await host.boot_id()
        except (HostUnreachable, CommandFailed) as error:
            tell(error.message)
            return None

    async def _destroyed(self, cloud: Cloud, order: OperationOrder) -> bool:
        """Destroys the nodes that there are; says whether there are none and nobody may be making one."""
        others = await self._records.other_step_runs(order, current_run(order, "destroy_node"))
        # Read again: the other step may have written down what it made.
        server = await self._records.get(Server, order.resource_id)
        if others:
            tell("Waits for the end of a step that may still be making the machine")
        nodes = await find_server_nodes(cloud, server)
        if nodes and server.node_id is None:
            # A destruction that is interrupted can leave parts that only the machine's id leads to.
            await self._records.note(order, server, node_id=nodes[0].id)
        return not await _destroy(cloud, nodes) and not others

    async def _create(self, cloud: Cloud, server: Server, spec: NodeSpec, order: OperationOrder) -> Node:
        """Creates a node and writes down its id; where the operation was closed meanwhile, destroys it.

        Raises `OperationClosed`.
        """
        node = await cloud.create_node(spec)
        try:
            await self._records.note(order, server, node_id=node.id)
        except OperationClosed:
            await cloud.destroy_node(node.id)
            raise
        return node

    @activity.defn
    async def observe_server(self, order: OperationOrder) -> str | None:
        """The status in which the machine is now. Raises the errors of `Cloud`."""
        server = await self._records.get(Server, order.resource_id)
        async with self._nodes.open_cloud(server) as cloud:
            node = await find_server_node(cloud, server)
        if node is None or node.state in ("failed", "stopped"):
            status = "stopped" if node and node.state == "stopped" else "failed"
            await self._observe_instances(order, lambda _: status)
            return status
        try:
            async with asyncio.timeout(_OBSERVATION_SECONDS), self._hosts.open(server) as host:
                containers = await (await host.engine()).find_containers({INSTANCE_LABEL: None})
                await self._observe_instances(order, partial(status_of_containers, containers=containers))
        except (DeployError, TimeoutError):
            return "unreachable"
        return "running"

    async def _observe_instances(self, order: OperationOrder, status_of: Callable[[Instance], str]) -> None:
        """Writes the statuses of the instances that the operation has moved to a transitional one."""
        held = await self._records.included(order, Instance)
        moved = [each for each in held if each.status in INSTANCE.transitional]
        await self._records.observe_included(order, {each.id: status_of(each) for each in moved})

    async def _spec(self, server: Server, provider: Provider, order: OperationOrder) -> NodeSpec:
        installation = await self._records.installation()
        script = self._user_data(server)
        return NodeSpec(
            name=f"deployerp-{server.id}",
            size=server.size,
            location=server.location,
            image=server.image,
            user_data=user_data.cloud_config(script) if uses_cloud_init(provider.kind) else script,
            tags=tags_of(server)
            | {
                INSTALLATION_TAG: str(installation),
                "deployerp.organization": str(server.organization_id),
            },
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


def _pauses(provider: Provider) -> Iterator[float]:
    return growing_pauses(*_LOCAL_PAUSES if is_local(provider.kind) else _CLOUD_PAUSES)


async def _until(look: Callable[[], Awaitable[T | None]], pauses: Iterator[float]) -> T:
    """What `look` gives once that is anything; a cloud that asks to wait is asked again after that time."""
    while True:
        pause = next(pauses)
        try:
            if found := await look():
                return found
        except ProviderThrottled as error:
            tell("The provider asks to wait")
            pause = max(pause, error.retry_after)
        # Those that began together must not all ask at the same moment.
        await rest(jittered(pause))


async def _clear(cloud: Cloud, server: Server, pauses: Iterator[float]) -> None:
    """Destroys what an attempt that broke off has left, so that nobody waits for it to run."""

    async def is_clear() -> bool:
        failed = [node for node in await cloud.find_nodes(tags_of(server)) if node.state == "failed"]
        return not await _destroy(cloud, failed)

    await _until(is_clear, pauses)


async def _destroy(cloud: Cloud, nodes: Sequence[Node]) -> bool:
    """Asks for the end of nodes; says whether there were any."""
    for node in nodes:
        await cloud.destroy_node(node.id)
    return bool(nodes)


def _look_for_running(cloud: Cloud, server: Server) -> Callable[[], Awaitable[Node | None]]:
    """A look at the server's node that gives it once it runs and has an address.

    It raises `ProviderRefused` for a node that the cloud has given up, and `NodeGone` for one that it does
    not list for a minute.
    """
    listed_until = asyncio.get_running_loop().time() + _LISTED_SECONDS

    async def look() -> Node | None:
        node = await find_server_node(cloud, server)
        if node is None:
            if asyncio.get_running_loop().time() > listed_until:
                raise node_gone(server)
            # A cloud may not list a machine at once after it has made it.
            tell("The machine is made and not listed yet")
            return None
        if node.state == "failed":
            raise ProviderRefused(
                f"The provider has given up the machine of server {server.name}: retry the operation,"
                " which makes another one."
            )
        tell(f"The machine is {node.state}")
        return node if node.state == "running" and node.address else None

    return look
