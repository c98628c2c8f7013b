"""The way from a server's record to the machine itself."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from deployerp.activities.steps.interceptor import tell
from deployerp.activities.steps.nodes import Nodes, node_gone
from deployerp.core.errors import EngineError, HostUnreachable, ImageUnavailable
from deployerp.core.secrets import Vault
from deployerp.domain.servers import Server
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import Host
from deployerp.drivers.server.host_pool import HostPool
from deployerp.drivers.server.ssh_login import HostTarget

LOGIN = "root"


class Hosts:
    """Opens servers over SSH, each with its own keys; `close` it at the end."""

    def __init__(self, vault: Vault, nodes: Nodes) -> None:
        self._vault = vault
        self._nodes = nodes
        self._pool = HostPool()

    @asynccontextmanager
    async def open(self, server: Server) -> AsyncIterator[Host]:
        """A connected host; those who open one server at a time share a connection.

        Raises `HostUnreachable`, `HostKeyMismatch`, `HostAuthenticationFailed`, and `NodeGone` where the
        provider says that there is no such machine any more.
        """
        async with AsyncExitStack() as stack:
            try:
                opened = self._pool.open(server.id, self._target(server))
                host = await stack.enter_async_context(opened)
            except HostUnreachable as error:
                if await self._nodes.is_gone(server):
                    raise node_gone(server) from error
                raise
            yield host

    def drop(self, server: Server) -> None:
        """Has the next who opens the server log in anew: its machine is stopped or boots."""
        self._pool.drop(server.id)

    async def close(self) -> None:
        await self._pool.close()

    def _target(self, server: Server) -> HostTarget:
        if not (server.address and server.host_key and server.sealed_login_private_key):
            raise HostUnreachable(
                f"Server {server.name} has no address yet: its provision must finish first."
            )
        return HostTarget(
            address=server.address,
            port=server.ssh_port,
            user=LOGIN,
            private_key=self._vault.open(server.sealed_login_private_key),
            host_key=server.host_key,
        )


async def bring_image(host: Host, name: str, digest: str | None = None) -> None:
    """Sees to it that the server has an image: from a registry, else from the control plane's own engine.

    Where nobody has the image with the digest any more, the one that has the name now is brought.
    Raises `ImageUnavailable` with the registry's reason when neither has it.
    """
    engine = await host.engine()
    # Two instances deployed at once would each move the same half gigabyte.
    async with host.lock("images"):
        if await engine.image_id(digest or name) is not None:
            return
        # An id alone is known to no registry.
        if digest is not None and "@" in digest:
            with suppress(ImageUnavailable):
                await engine.pull_image(digest, lambda progress: tell(f"{name}: {progress}"))
                return
        if await engine.image_id(name) is not None:
            return
        try:
            await engine.pull_image(name, lambda progress: tell(f"{name}: {progress}"))
        except ImageUnavailable:
            async with Engine.local() as own:
                if not await _has(own, name):
                    # Why the registry does not serve it is what can be put right.
                    raise
                await _load(engine, own, name)


async def _has(own: Engine, name: str) -> bool:
    """Whether the control plane's own engine has the image; in production there is no such engine."""
    try:
        return await own.image_id(name) is not None
    except EngineError:
        return False


async def _load(engine: Engine, own: Engine, name: str) -> None:
    size = await own.image_size(name)
    await engine.load_image(
        own.export_image(name), lambda progress: tell(f"{name}: {progress}"), size_bytes=size
    )
