"""The way from a server's record to the machine itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployerp.activities.interceptor import tell
from deployerp.domain.errors import HostUnreachable, ImageUnavailable
from deployerp.domain.secrets import Vault
from deployerp.domain.servers import Server
from deployerp.drivers.engine import Engine
from deployerp.drivers.host import Host, HostTarget, connect

LOGIN = "root"


class Hosts:
    """Opens servers over SSH, each with its own keys."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    @asynccontextmanager
    async def open(self, server: Server) -> AsyncIterator[Host]:
        """A connected host. Raises `HostUnreachable`, `HostKeyMismatch`, `HostAuthenticationFailed`."""
        if not (server.address and server.host_key and server.sealed_login_private_key):
            raise HostUnreachable(
                f"Server {server.name} has no address yet: its provision must finish first."
            )
        target = HostTarget(
            address=server.address,
            port=server.ssh_port,
            user=LOGIN,
            private_key=self._vault.open(server.sealed_login_private_key),
            host_key=server.host_key,
        )
        async with connect(target) as host:
            yield host


async def bring_image(host: Host, name: str) -> None:
    """Sees to it that the server has an image: from a registry, else from the control plane's own engine.

    Raises `ImageUnavailable` when neither has it.
    """
    engine = await host.engine()
    # Two instances deployed at once would each move the same half gigabyte.
    async with host.lock("images"):
        if await engine.image_id(name) is not None:
            return
        try:
            await engine.pull_image(name, lambda progress: tell(f"{name}: {progress}"))
        except ImageUnavailable:
            async with Engine.local() as own:
                await _load(engine, own, name)


async def _load(engine: Engine, own: Engine, name: str) -> None:
    size = await own.image_size(name)
    await engine.load_image(
        own.export_image(name), lambda progress: tell(f"{name}: {progress}"), size_bytes=size
    )
