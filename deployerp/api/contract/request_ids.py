"""Every request gets an id that is in its answer, its header and its log lines."""

import re
import time
from uuid import uuid4

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployerp.api.contract.errors import respond_unexpected

# An id that clients give must look like one.
SANE_ID = r"[A-Za-z0-9._-]{8,128}"
_SANE = re.compile(SANE_ID)
log = structlog.get_logger()


class RequestIds:
    """Pure ASGI; what others put into the state's `headers` goes out with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _client_request_id(scope) or uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        headers = state["headers"] = [(b"x-request-id", request_id.encode())]
        status, started = 0, time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            # Nobody is there to be answered: nginx's word for it.
            status = 499
        except Exception as error:
            answer = respond_unexpected(Request(scope, receive), error)
            if status:
                # It has begun: all that can be done is to break it off.
                raise
            await answer(scope, receive, send_with_headers)
        finally:
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            log.info("request", method=scope["method"], path=scope["path"], status=status, ms=milliseconds)
            structlog.contextvars.unbind_contextvars("request_id")


def _client_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            # What may stand around a value is no part of it (RFC 9110, 5.5).
            given = value.decode("latin-1").strip(" \t")
            return given if _SANE.fullmatch(given) else None
    return None
