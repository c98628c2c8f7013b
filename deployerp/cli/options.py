"""What the commands share: options, settings, the database, and lines for people."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError

from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory, open_database, session_factory
from deployerp.domain import tables  # noqa: F401  (foreign keys find every table)
from deployerp.embedded import control_plane

T = TypeVar("T")
PORTS = control_plane.Ports()
StateFolder = Annotated[
    Path, typer.Option(envvar="DEPLOYERP_HOME", help="Folder of the embedded control plane's state.")
]
EmbeddedHome = Annotated[
    Path | None, typer.Option("--home", help="Use the embedded control plane of this folder.")
]


def note(line: str) -> None:
    """Prints to standard error, so that standard output holds the result alone."""
    typer.echo(line, err=True)


def settings_of(home: Path | None) -> Settings:
    """The settings of the embedded control plane in `home`, or those of the environment."""
    return control_plane.embedded_settings(home, PORTS) if home else Settings()


def check_option(kind: Any, value: str, option: str) -> Any:
    """Validates a value. Raises `typer.BadParameter`, which names the option."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"], param_hint=option) from None


def with_database(settings: Settings, work: Callable[[SessionFactory], Awaitable[T]]) -> T:
    """Runs `work` with sessions of the database, which is closed afterwards."""

    async def run() -> T:
        database = open_database(settings.database_url)
        try:
            return await work(session_factory(database))
        finally:
            await database.dispose()

    return asyncio.run(run())
