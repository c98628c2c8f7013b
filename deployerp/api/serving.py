"""The process that answers."""

import socket
from typing import Any, cast

import uvicorn


class Server(uvicorn.Server):
    """Ends what is followed before it waits for its answers to end: streams do not do so by themselves."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cast("Any", self.config.app).state.context.watcher.close()
        await super().shutdown(sockets)
