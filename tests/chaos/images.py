"""Images for new nodes, as the image of a cloud's machines has them.

To bring them takes a worker on a busy machine longer than it is left alone: no deploy would ever succeed.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import world
from tests.chaos.log import Log
from tests.e2e.world import output_of

_PAUSE_SECONDS = 2.0
_LOAD_SECONDS = 120


class Images:
    """Loads images into each node of an installation, once, also while it breaks."""

    def __init__(self, installation: str, archive: Path, log: Log) -> None:
        self._installation = installation
        self._archive = archive
        self._log = log
        self._loaded: set[str] = set()

    async def save(self, names: Sequence[str]) -> None:
        await output_of("docker", "save", "--output", str(self._archive), *names)

    async def keep_loading(self) -> None:
        while True:
            for node in await world.node_names(self._installation, "status=running"):
                if node not in self._loaded and await self._load(node):
                    self._loaded.add(node)
                    self._log.write("images loaded", node=node)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _load(self, node: str) -> bool:
        """Whether it worked: the engine may not be up yet, or be killed meanwhile."""
        with self._archive.open("rb") as archive:
            process = await asyncio.create_subprocess_exec(
                *("timeout", str(_LOAD_SECONDS), "docker", "exec", "--interactive", node, "docker", "load"),
                stdin=archive,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        return await process.wait() == 0
