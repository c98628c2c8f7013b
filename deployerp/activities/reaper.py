"""Machines that no record wants any more: what a lost answer or a lost worker has left in a cloud."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import col

from deployerp.activities.steps.isolation import logged
from deployerp.core.secrets import Vault
from deployerp.database.sessions import SessionFactory
from deployerp.domain.installations import INSTALLATION_TAG, installation_id
from deployerp.domain.providers import Provider
from deployerp.domain.servers import SERVER_TAG, Server
from deployerp.drivers.clouds.cloud import Cloud, Clouds, Node

log = structlog.get_logger()


class NodeReaper:
    """Destroys nodes of this installation whose server is deleted, and reports those that no record knows.

    The second kind is never destroyed: the records may have been restored from yesterday's.
    """

    def __init__(self, sessions: SessionFactory, clouds: Clouds, vault: Vault) -> None:
        self._sessions = sessions
        self._clouds = clouds
        self._vault = vault

    async def reap(self) -> Counter[str]:
        """Looks at the nodes of every provider; says how many were destroyed and how many are unknown."""
        async with self._sessions() as session:
            installation = await installation_id(session)
            providers = (await session.scalars(select(Provider))).all()
        done: Counter[str] = Counter()
        for provider in providers:
            with logged("cannot look at a provider's nodes", provider_id=str(provider.id)):
                cloud = self._clouds.open(
                    provider.kind, self._vault.open_mapping(provider.sealed_credentials)
                )
                nodes = await cloud.find_nodes({INSTALLATION_TAG: str(installation)})
                done += await self._reap_nodes(cloud, provider, nodes)
        return done

    async def _reap_nodes(self, cloud: Cloud, provider: Provider, nodes: Sequence[Node]) -> Counter[str]:
        done: Counter[str] = Counter()
        known = await self._servers(nodes)
        for node in nodes:
            server = known.get(node.tags.get(SERVER_TAG, ""))
            if server is None:
                log.warning("a node that no record knows", node=node.id, provider_id=str(provider.id))
                done["unknown"] += 1
            elif server.deleted_at is not None:
                log.warning("a node of a deleted server", node=node.id, server_id=str(server.id))
                await cloud.destroy_node(node.id)
                done["destroyed"] += 1
        return done

    async def _servers(self, nodes: Sequence[Node]) -> dict[str, Server]:
        ids = []
        for node in nodes:
            # Somebody else may use a tag of the same name.
            with suppress(ValueError):
                ids.append(UUID(node.tags.get(SERVER_TAG, "")))
        async with self._sessions() as session:
            found = await session.scalars(select(Server).where(col(Server.id).in_(ids)))
            return {str(server.id): server for server in found}
