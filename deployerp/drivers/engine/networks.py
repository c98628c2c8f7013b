"""Networks and volumes of an engine: what containers are plugged into."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiodocker

from deployerp.drivers.engine.connection import EngineConnection, doing, label_filter


class NetworksAndVolumes(EngineConnection):
    """The engine's verbs on networks and volumes."""

    async def ensure_network(self, name: str, labels: Mapping[str, str]) -> None:
        """Create the network unless one of this name is there."""
        with doing(f"create network {name}"), ignoring(409):
            if await self._network(name) is None:
                await self._docker.networks.create(
                    {
                        "Name": name,
                        "Driver": "bridge",
                        "CheckDuplicate": True,
                        "Labels": dict(labels),
                    }
                )

    async def ensure_volume(self, name: str, labels: Mapping[str, str]) -> None:
        """Create the volume unless it is there, which the engine itself sees to."""
        with doing(f"create volume {name}"):
            await self._docker.volumes.create({"Name": name, "Labels": dict(labels)})

    async def connect_network(self, container: str, network: str, aliases: Sequence[str] = ()) -> None:
        """Plug the container into the network under these further names; plugged in already is success."""
        with doing(f"connect {container} to network {network}"):
            inspected = await self._docker.containers.container(container).show()
            if network in inspected["NetworkSettings"]["Networks"]:
                return
            found = await self._docker.networks.get(network)
            with ignoring("already exists in network"):
                await found.connect({"Container": container, "EndpointConfig": {"Aliases": list(aliases)}})

    async def disconnect_network(self, container: str, network: str) -> None:
        """Unplug the container; not plugged in, no container or no network is success."""
        with doing(f"disconnect {container} from network {network}"), ignoring(404):
            inspected = await self._docker.containers.container(container).show()
            if network not in inspected["NetworkSettings"]["Networks"]:
                return
            found = await self._docker.networks.get(network)
            with ignoring("is not connected to"):
                await found.disconnect({"Container": container, "Force": True})

    async def find_networks(self, labels: Mapping[str, str | None]) -> list[str]:
        """The names of the networks that have all these labels; None stands for any value."""
        with doing("list networks"):
            found = await self._docker.networks.list(filters=label_filter(labels))
        return sorted(network["Name"] for network in found)

    async def find_volumes(self, labels: Mapping[str, str | None]) -> list[str]:
        """The names of the volumes that have all these labels; None stands for any value."""
        with doing("list volumes"):
            found = await self._docker.volumes.list(filters=label_filter(labels))
        return sorted(volume["Name"] for volume in found["Volumes"] or [])

    async def remove_network(self, name: str) -> None:
        """Unplug whatever is still plugged in, running or not, and remove the network; absent is success."""
        with doing(f"list what is on network {name}"):
            # A stopped container that keeps a removed network can never be started again.
            plugged = await self._docker.containers.list(all=True, filters=f'{{"network": ["{name}"]}}')
        for container in plugged:
            await self.disconnect_network(container.id, name)
        with doing(f"remove network {name}"), ignoring(404):
            await (await self._docker.networks.get(name)).delete()

    async def remove_volume(self, name: str) -> None:
        """Remove the volume and what is in it; absent is success. Raises EngineError while it is in use."""
        with doing(f"remove volume {name}"), ignoring(404):
            await (await self._docker.volumes.get(name)).delete()

    async def _network(self, name: str) -> dict[str, Any] | None:
        with ignoring(404):
            return dict(await (await self._docker.networks.get(name)).show())
        return None


@contextlib.contextmanager
def ignoring(*answers: int | str) -> Iterator[None]:
    """Take these answers of the engine, a status or a phrase, for success: somebody else was faster."""
    try:
        yield
    except aiodocker.DockerError as error:
        phrases = [answer for answer in answers if isinstance(answer, str)]
        if error.status not in answers and not any(phrase in error.message for phrase in phrases):
            raise
