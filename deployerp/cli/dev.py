"""`deployerp dev` and `demo`: the embedded control plane."""

import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from alembic import command as alembic
from watchfiles import arun_process

from deployerp.cli.options import PORTS, StateFolder, note
from deployerp.cli.serve import run_api
from deployerp.core import logging
from deployerp.core.settings import Settings
from deployerp.embedded import control_plane
from deployerp.embedded import demo as end_to_end
from deployerp.migrations import configuration

_PACKAGE = Path(__file__).parents[1]


def dev(
    home: StateFolder = Path(".deployerp"),
    port: Annotated[int, typer.Option(help="Port of the API.")] = PORTS.api,
    temporal_port: Annotated[int, typer.Option(help="Port of Temporal.")] = PORTS.temporal,
    ui_port: Annotated[int, typer.Option(help="Port of Temporal's UI.")] = PORTS.temporal_ui,
    storage_port: Annotated[int, typer.Option(help="Port of the object storage.")] = PORTS.object_storage,
    worker_port: Annotated[int, typer.Option(help="Port of the worker's queries.")] = PORTS.worker,
    reload: Annotated[bool, typer.Option(help="Restart when the code changes.")] = False,
    images: Annotated[bool, typer.Option(help="Install Docker and prepare images first.")] = True,
) -> None:
    """Run the embedded control plane: API, worker, Temporal and object storage, on SQLite."""
    ports = control_plane.Ports(port, temporal_port, ui_port, storage_port, worker_port)
    settings = control_plane.embedded_settings(home, ports)
    logging.configure(settings.log_level)
    asyncio.run(_run(settings, ports, reload, images))


def demo(
    home: StateFolder = Path(".deployerp"),
    keep: Annotated[bool, typer.Option(help="Keep everything running and print the addresses.")] = False,
) -> None:
    """Run the end-to-end demo: deploy a real Odoo through the API, operate it, delete it."""
    sys.exit(asyncio.run(end_to_end.run(home, keep=keep)))


async def _run(settings: Settings, ports: control_plane.Ports, reload: bool, images: bool) -> None:
    # First: preparing images can take minutes.
    await control_plane.check_free("the API", settings.api_port)
    await control_plane.check_free("the worker's queries", settings.worker_port)
    if images:
        await control_plane.provide_images(settings, note)
    async with control_plane.services(settings, ports):
        await asyncio.to_thread(alembic.upgrade, configuration(settings.database_url), "head")
        note(f"API          http://127.0.0.1:{settings.api_port}/playground")
        note(f"Temporal UI  http://127.0.0.1:{ports.temporal_ui}")
        create_key = [own_program(), "keys", "create", "--organization", "demo", "--create"]
        create_key += ["--home", str(settings.home)]
        note(f"Create a key {shlex.join(create_key)}")
        if reload:
            await _run_reloading(settings)
        else:
            await run_api(settings, with_worker=True)


def own_program() -> str:
    """The path to type for this program, which need not be on the PATH."""
    beside, here = Path(sys.executable).with_name("deployerp"), Path.cwd()
    if not beside.exists():
        return "deployerp"
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


async def _run_reloading(settings: Settings) -> None:
    """Runs API and worker in a process that restarts when the code changes."""
    os.environ.update(control_plane.environment_of(settings))
    await arun_process(
        _PACKAGE,
        target=f"{sys.executable} -m deployerp.cli serve --with-worker",
        target_type="command",
    )
