"""The process that answers."""

import gc
import socket
from typing import Any, cast

import uvicorn


class Server(uvicorn.Server):
    """Serves the application of its configuration."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """All that is there before the first request lives as long as the process: it is no garbage.

        To look through it again and again would keep requests waiting for a tenth of a second each time.
        """
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends what is followed before it waits for answers to end: streams do not do so by themselves."""
        cast("Any", self.config.app).state.context.watcher.close()
        await super().shutdown(sockets)
