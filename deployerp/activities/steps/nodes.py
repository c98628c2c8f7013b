"""The nodes of servers, as their providers know them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from uuid import UUID

from deployerp.activities.records import Records
from deployerp.activities.steps.waiting import rest
from deployerp.core.errors import CredentialsRefused, DeployError, NodeGone
from deployerp.core.secrets import Vault
from deployerp.domain.providers import Provider
from deployerp.domain.servers import SERVER_TAG, Server
from deployerp.drivers.clouds.cloud import Cloud, Clouds, Node, is_local

# A cloud's list may not show a node at once after it was made.
LOOK_AGAIN_SECONDS = 5
# Many steps may meet one server that does not answer, and clouds count the calls of an account.
_ASK_AGAIN_SECONDS = 30


class Nodes:
    """Opens the accounts of servers, and asks there for their nodes."""

    def __init__(self, records: Records, clouds: Clouds, vault: Vault) -> None:
        self._records = records
        self._clouds = clouds
        self._vault = vault
        # When the providers were last asked whether a server's node is gone, by the server's id.
        self._asked: dict[UUID, float] = {}

    @asynccontextmanager
    async def open_cloud(self, server: Server) -> AsyncIterator[Cloud]:
        """The account that the server's node is in. Raises `CredentialsRefused` that names the provider."""
        provider = await self._records.get(Provider, server.provider_id)
        try:
            yield self._open(provider)
        except CredentialsRefused as error:
            raise CredentialsRefused(
                f"The cloud refuses the credentials of provider {provider.name}. {error.message}"
                " Have the cloud accept them and retry the operation, or create another provider with"
                " credentials that are valid, and the server on that one."
            ) from error

    async def is_gone(self, server: Server) -> bool:
        """Whether the provider says that the server's node does not exist.

        False where it cannot be asked, or was asked a moment ago: only its own answer proves that.
        """
        if server.node_id is None:
            return False
        try:
            provider = await self._records.get(Provider, server.provider_id)
            is_gone = await self._ask(server, provider)
        except DeployError:
            return False
        if is_gone:
            self._asked.pop(server.id, None)
        return is_gone

    async def _ask(self, server: Server, provider: Provider) -> bool:
        cloud = self._open(provider)
        if is_local(provider.kind):
            return await find_server_node(cloud, server) is None
        now = time.monotonic()
        if now - self._asked.get(server.id, -inf) < _ASK_AGAIN_SECONDS:
            return False
        self._asked[server.id] = now
        if await find_server_node(cloud, server) is not None:
            return False
        await rest(LOOK_AGAIN_SECONDS)
        return await find_server_node(cloud, server) is None

    def _open(self, provider: Provider) -> Cloud:
        return self._clouds.open(provider.kind, self._vault.open_mapping(provider.sealed_credentials))


def tags_of(server: Server) -> dict[str, str]:
    return {SERVER_TAG: str(server.id)}


async def find_server_nodes(cloud: Cloud, server: Server) -> list[Node]:
    """By tag, and by the recorded id: a cloud's list may not show a node that was just made."""
    nodes = await cloud.find_nodes(tags_of(server))
    if server.node_id is None or server.node_id in {node.id for node in nodes}:
        return nodes
    recorded = await cloud.get_node(server.node_id)
    return [*nodes, recorded] if recorded is not None and recorded.state != "terminated" else nodes


async def find_server_node(cloud: Cloud, server: Server) -> Node | None:
    nodes = await find_server_nodes(cloud, server)
    return nodes[0] if nodes else None


async def require_server_node(cloud: Cloud, server: Server) -> Node:
    """Raises `NodeGone`."""
    node = await find_server_node(cloud, server)
    if node is None:
        raise node_gone(server)
    return node


def node_gone(server: Server) -> NodeGone:
    machine = f"machine {server.node_id}" if server.node_id else "machine"
    return NodeGone(
        f"The provider does not have the {machine} of server {server.name}: it was removed outside"
        " deployERP. Delete the server by force (`?force=true`), which forgets its instances too, or an"
        " instance alone by force."
    )
