"""The API as processes of the system, over one database: what holds only within one does not hold here."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from deployerp.core.settings import Settings
from deployerp.embedded.control_plane import environment_of
from tests.conftest import Client, free_port

Program = Sequence[str]
SERVE: Program = ("-m", "deployerp.cli", "serve")


@dataclass
class ApiProcess:
    """One of them."""

    http: httpx.AsyncClient
    process: Process
    log: Path

    def seen_by(self, client: Client) -> Client:
        """The same caller, by way of this process."""
        return Client(self.http, client.organization_id, client.token)

    async def ready(self) -> None:
        """Waits until it answers."""
        while True:
            assert self.process.returncode is None, f"the API has ended by itself: {self.log.read_text()}"
            try:
                await self.http.get("/healthz")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return

    async def end(self) -> bytes:
        """What it has written to its standard output, once it has ended."""
        written, _ = await self.process.communicate()
        return written


@asynccontextmanager
async def api_processes(
    settings: Settings, programs: Sequence[Program] = (SERVE, SERVE)
) -> AsyncIterator[list[ApiProcess]]:
    """A process for each program of Python's that serves the API; they end with the block."""
    async with AsyncExitStack() as running:
        processes = [await running.enter_async_context(_begun(settings, each)) for each in programs]
        for process in processes:
            await process.ready()
        yield processes


@asynccontextmanager
async def _begun(settings: Settings, program: Program) -> AsyncIterator[ApiProcess]:
    port = free_port()
    environment = os.environ | environment_of(settings.model_copy(update={"api_port": port}))
    log = settings.home / f"api-{port}.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *program, stdin=DEVNULL, stdout=PIPE, stderr=errors, env=environment
        )
    try:
        # Patience is for the machine: whoever hangs is ended by the time limit of the test.
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            yield ApiProcess(http, process, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
