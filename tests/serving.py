"""The API on a port of its own, for what does not speak to a client inside this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from deployerp.api.app import create_app
from deployerp.api.serving import Server
from deployerp.core.settings import Settings


@asynccontextmanager
async def listening(settings: Settings, *, streaming: bool = True) -> AsyncIterator[str]:
    """The address of the API; it ends with the context.

    When not `streaming`, streams end once they have told what there is.
    """
    app = create_app(settings)
    server = Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        assert not serving.done()
    if not streaming:
        app.state.context.watcher.close()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
