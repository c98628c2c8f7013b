"""`deployerp serve`, `worker` and `migrate`: the processes of production."""

import asyncio
import signal
from typing import Annotated, Any

import typer
import uvicorn
import uvloop
from alembic import command as alembic

from deployerp.api.app import create_app
from deployerp.api.serving import Server
from deployerp.core import logging
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.migrations import configuration
from deployerp.worker import run_worker


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    with_worker: Annotated[bool, typer.Option(help="Also run a worker in this process.")] = False,
) -> None:
    """Run the API."""
    given: dict[str, Any] = {"api_host": host, "api_port": port}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    _prepare(settings)
    # uvloop makes small requests cheaper. The worker's libraries are made for asyncio's own loop.
    loop_factory = None if with_worker else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run_api(settings, with_worker))


def worker() -> None:
    """Run a Temporal worker. Any number of workers share the work."""
    settings = Settings()
    _prepare(settings)
    asyncio.run(run_until_signal(settings))


def migrate(revision: Annotated[str, typer.Argument(help="Revision to migrate to.")] = "head") -> None:
    """Migrate the database schema."""
    alembic.upgrade(configuration(Settings().database_url), revision)


def _prepare(settings: Settings) -> None:
    """Sets up logging. Raises what is wrong with the encryption keys before anything starts."""
    Vault(settings.encryption_keys)
    logging.configure(settings.log_level)


async def run_api(settings: Settings, with_worker: bool) -> None:
    """Serves requests until the process is told to end."""
    server = Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.api_host,
            port=settings.api_port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            # Only these proxies: anybody can write `X-Forwarded-For`.
            forwarded_allow_ips=[str(network) for network in settings.trusted_proxies],
        )
    )
    if not with_worker:
        await server.serve()
        return
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(settings, stop))
    # Without a worker the API would accept work that nobody does.
    working.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        # It raises SystemExit when it cannot listen.
        await server.serve()
    finally:
        stop.set()
        await working


async def run_until_signal(settings: Settings) -> None:
    """Runs a worker until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run_worker(settings, stop)
