"""The API on a port of its own, for what does not speak to a client inside this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from deployerp.api.app import create_app
from deployerp.domain.settings import Settings


@asynccontextmanager
async def listening(settings: Settings) -> AsyncIterator[str]:
    """The address of the API; it ends with the context."""
    config = uvicorn.Config(create_app(settings), port=0, log_config=None, ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        assert not serving.done()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
