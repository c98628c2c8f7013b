"""The process that answers."""

import gc
import socket
from typing import Any, cast
from uuid import uuid4

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deployerp.api.answers import encode
from deployerp.domain.base import utc_now
from deployerp.domain.errors import ValidationFailed


class _Protocol(HttpToolsProtocol):
    def send_400_response(self, msg: str) -> None:
        """What is no HTTP never comes to the application; it is answered in the envelope all the same."""
        request_id = uuid4().hex
        error = {"code": ValidationFailed.code, "message": msg, "details": {}}
        meta = {"request_id": request_id, "timestamp": utc_now()}
        body = encode({"success": False, "error": error, "meta": meta})
        head = (
            "HTTP/1.1 400 Bad Request",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
            "\r\n",
        )
        self.transport.write("\r\n".join(head).encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Serves the application of its configuration."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """All that is there before the first request lives as long as the process: it is no garbage.

        To look through it again and again would keep requests waiting for a tenth of a second each time.
        """
        self.config.http_protocol_class = _Protocol
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends what is followed before it waits for answers to end: streams do not do so by themselves."""
        cast("Any", self.config.app).state.context.watcher.close()
        await super().shutdown(sockets)
