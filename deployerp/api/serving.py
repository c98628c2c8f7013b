"""The process that answers."""

import asyncio
import gc
import socket
from typing import Any, cast
from uuid import uuid4

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deployerp.api.contract.envelope import encode
from deployerp.core.errors import ValidationFailed
from deployerp.database.base import utc_now

# So long a client may take for the head of a request; the first counts from the connection.
HEAD_SECONDS = 10.0


class _Protocol(HttpToolsProtocol):
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._time_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._stop_timing()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timing()
        super().connection_lost(exc)

    def _time_head(self) -> None:
        """Has the connection closed unless a whole head comes in time: each one takes a file descriptor."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timing(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

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
