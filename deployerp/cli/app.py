"""The `deployerp` command."""

import sys
from typing import Annotated

import typer

from deployerp import __version__
from deployerp.cli import audit, failures, keys
from deployerp.cli.bootstrap import bootstrap, users
from deployerp.cli.dev import demo, dev
from deployerp.cli.options import note
from deployerp.cli.serve import migrate, serve, worker

app = typer.Typer(help="A control plane for fleets of Odoo.", no_args_is_help=True, add_completion=False)
for command in (dev, serve, worker, migrate, demo, bootstrap):
    app.command()(command)
app.add_typer(keys.app, name="keys")
app.add_typer(users, name="users")
app.add_typer(audit.app, name="audit")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deployerp {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A control plane for fleets of Odoo."""


def main() -> None:
    """Runs the command. An error that a user can act on is printed in one line, without a traceback."""
    try:
        app()
    except Exception as error:
        lines = failures.explain(error)
        if lines is None:
            raise
        for line in lines:
            note(f"error: {line}")
        sys.exit(1)
