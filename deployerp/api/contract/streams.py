"""Server-sent events: one way to tell what happens while it does."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID

import structlog
from fastapi import Request
from fastapi.responses import StreamingResponse

from deployerp.api.access.authentication import bearer_of
from deployerp.api.contract import dependencies
from deployerp.api.contract.envelope import encode
from deployerp.api.contract.errors import away
from deployerp.api.contract.schemas import View
from deployerp.api.contract.watcher import Watcher
from deployerp.core.errors import Forbidden, RateLimitExceeded, Unauthorized

# Proxies close a stream that is silent for long, and whoever may not read it any more must soon be told
# nothing more.
_HEARTBEAT_SECONDS = 15
_HEARTBEAT = b": still here\n\n"
# In milliseconds: how long a client that has lost it waits before it comes again.
_RETRY = b"retry: 1000\n\n"
# Streams of one organization at one process: each takes its place for as long as it is open.
_MOST_STREAMS = 100
_COME_AGAIN_SECONDS = 60
# How long there may be nothing to tell: a stream has more to see to.
PATIENCE_SECONDS = 1
log = structlog.get_logger()


def documented(view: type[View]) -> dict[int | str, dict[str, Any]]:
    """The answer of a route that streams; the data of each event is a view that other routes have as well."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{view.__name__}"},
    }
    text = {"type": "string"}
    event = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": text | {"description": "Name of the message."},
            "data": data | {"description": "The resource, as JSON."},
        },
    }
    return {200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": event}}}}


def message(event: str, data: object, id: int | None = None) -> bytes:
    """One event; its data is JSON, which takes a single line."""
    numbered = b"" if id is None else b"id: %d\n" % id
    return numbered + b"event: %s\ndata: %s\n\n" % (event.encode(), encode(data))


def need_place(watcher: Watcher, organization_id: UUID) -> None:
    """Raises `RateLimitExceeded` where the organization has all the streams open that it may have."""
    if watcher.streams(organization_id) >= _MOST_STREAMS:
        raise RateLimitExceeded(
            f"Your organization has {_MOST_STREAMS} streams open: close one, or come again later.",
            retry_after=_COME_AGAIN_SECONDS,
        )


def stream(request: Request, messages: AsyncGenerator[bytes]) -> StreamingResponse:
    """Tells messages as they come, until there are no more, the caller may not read them or the API stops.

    They must yield at least every second, nothing where there is nothing.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_send(request, messages), media_type="text/event-stream", headers=headers)


async def _send(request: Request, messages: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    closed, clock = dependencies.context(request).watcher.closed, asyncio.get_running_loop().time
    beaten = clock()
    yield _RETRY
    try:
        async with aclosing(messages):
            async for told in messages:
                if told:
                    yield told
                if closed.is_set():
                    return
                if clock() - beaten >= _HEARTBEAT_SECONDS:
                    if not await _may_still(request):
                        return
                    yield _HEARTBEAT
                    beaten = clock()
    except Exception as error:
        if away(error) is None:
            raise
        log.error("the database does not answer", reason=repr(error))


async def _may_still(request: Request) -> bool:
    """Whether the token that came with the request would open the stream again."""
    token = bearer_of(request.scope) or ""
    try:
        caller = await dependencies.context(request).authenticator.caller(token)
        caller.need(request.scope["route"].permission)
    except (Unauthorized, Forbidden):
        return False
    return True
