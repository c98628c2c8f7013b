"""The `deployerp` command."""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
import uvloop
from alembic import command as alembic
from sqlalchemy import select
from sqlmodel import col
from watchfiles import arun_process

from deployerp.api.app import create_app
from deployerp.api.serving import Server
from deployerp.cli import bootstrap as bootstrapping
from deployerp.cli import failures
from deployerp.core import logging
from deployerp.core.errors import NotFound
from deployerp.core.fields import Name, Slug
from deployerp.core.secrets import Vault, new_encryption_key
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory, open_database, session_factory
from deployerp.domain import bootstrap as beginnings
from deployerp.domain import tables  # noqa: F401  (foreign keys find every table)
from deployerp.domain.audit.verification import Broken, verify
from deployerp.domain.bootstrap import add_key, add_organization
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import LEVELS
from deployerp.domain.plans import PLANS
from deployerp.domain.resealing import Resealed, reseal
from deployerp.domain.users import Email
from deployerp.embedded import control_plane
from deployerp.embedded import demo as demonstration
from deployerp.migrations import configuration
from deployerp.worker import run_worker

app = typer.Typer(help="The control plane for fleets of Odoo.", no_args_is_help=True, add_completion=False)
keys = typer.Typer(help="API keys and encryption keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")
users = typer.Typer(help="Users.", no_args_is_help=True)
app.add_typer(users, name="users")
audit = typer.Typer(help="The audit log.", no_args_is_help=True)
app.add_typer(audit, name="audit")

_PORTS = control_plane.Ports()
# A hundred years: what is later than the last date there is cannot be kept.
_MOST_DAYS = 36_500
HomeOption = Annotated[
    Path, typer.Option(envvar="DEPLOYERP_HOME", help="Folder of the embedded control plane's state.")
]


def _note(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def dev(
    home: HomeOption = Path(".deployerp"),
    port: Annotated[int, typer.Option(help="Port of the API.")] = _PORTS.api,
    temporal_port: Annotated[int, typer.Option(help="Port of Temporal.")] = _PORTS.temporal,
    ui_port: Annotated[int, typer.Option(help="Port of Temporal's UI.")] = _PORTS.temporal_ui,
    storage_port: Annotated[int, typer.Option(help="Port of the object storage.")] = _PORTS.object_storage,
    reload: Annotated[bool, typer.Option(help="Start again when the code changes.")] = False,
    images: Annotated[bool, typer.Option(help="See to the engine and the images first.")] = True,
) -> None:
    """Run the embedded control plane: API, worker, Temporal, object storage, on SQLite."""
    ports = control_plane.Ports(port, temporal_port, ui_port, storage_port)
    settings = control_plane.embedded_settings(home, ports)
    logging.configure(settings.log_level)
    asyncio.run(_dev(settings, ports, reload, images))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    with_worker: Annotated[bool, typer.Option(help="Run a worker in the same process.")] = False,
) -> None:
    """Run the API."""
    given: dict[str, Any] = {"api_host": host, "api_port": port}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    _prepare(settings)
    # uvloop makes small requests cheaper. The worker's libraries are at home on the other one.
    loop_factory = None if with_worker else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(settings, with_worker))


@app.command()
def worker() -> None:
    """Run a Temporal worker, which does the work; any number of them share it."""
    settings = Settings()
    _prepare(settings)
    asyncio.run(_work(settings))


@app.command()
def migrate(revision: Annotated[str, typer.Argument(help="Revision to go to.")] = "head") -> None:
    """Bring the database's schema up to date."""
    alembic.upgrade(configuration(Settings().database_url), revision)


@app.command()
def demo(
    home: Annotated[Path, typer.Option(envvar="DEPLOYERP_HOME", help="Folder of the demo's state.")] = Path(
        ".deployerp"
    ),
    keep: Annotated[bool, typer.Option(help="Leave everything running and tell where it is.")] = False,
) -> None:
    """Do the whole job once, on real parts, through the API, and clean up after it."""
    sys.exit(asyncio.run(demonstration.run(home, keep=keep)))


@app.command()
def bootstrap(
    organization: Annotated[str, typer.Option(help="Slug of the organization that is made.")],
    email: Annotated[str, typer.Option(help="E-mail address of its owner.")],
    name: Annotated[str | None, typer.Option(help="Its name; by default the slug.")] = None,
    plan: Annotated[str, typer.Option(help=f"One of {', '.join(PLANS)}.")] = "enterprise",
    existing_user: Annotated[
        bool, typer.Option("--existing-user", help="The owner is a user already, and keeps the password.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Tell what was made as one JSON object.")] = False,
    home: Annotated[Path | None, typer.Option(help="Use the embedded control plane of this folder.")] = None,
) -> None:
    """Make an organization, its owner and its first key, and show the key, this once.

    A new owner chooses a password with the one-time token that is shown. Somebody who is a user already
    becomes the owner only with --existing-user.
    """
    settings = control_plane.embedded_settings(home, _PORTS) if home else Settings()
    bootstrapping.run(
        settings,
        slug=organization,
        name=name or organization,
        email=email,
        plan=plan,
        existing_user=existing_user,
        as_json=as_json,
    )


@users.command("reset-password")
def reset_password(
    organization: Annotated[str, typer.Option(help="Slug of an organization of the user.")],
    email: Annotated[str, typer.Option(help="E-mail address of the user.")],
    home: Annotated[Path | None, typer.Option(help="Use the embedded control plane of this folder.")] = None,
) -> None:
    """Make a one-time token with which a user chooses a new password, and show it, this once.

    For users whom no admin may reset: those whose e-mail address is verified. Check who asks for it.
    """
    settings = control_plane.embedded_settings(home, _PORTS) if home else Settings()
    address = bootstrapping.checked(Email, email, "--email")
    typer.echo(asyncio.run(_reset_password(settings, organization, address)))
    _note(bootstrapping.how_to_set_password())


@keys.command("create")
def create_key(
    organization: Annotated[str, typer.Option(help="Slug of the organization.")],
    create: Annotated[
        bool, typer.Option("--create", help="Make the organization, without limits, if it is not there.")
    ] = False,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "first key",
    level: Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.")] = "admin",
    days: Annotated[
        int | None, typer.Option(min=1, max=_MOST_DAYS, help="Days until it expires; by default it does not.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Use the embedded control plane of this folder.")] = None,
) -> None:
    """Make an API key and show it, this once."""
    if level not in LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(LEVELS)}", param_hint="--level")
    settings = control_plane.embedded_settings(home, _PORTS) if home else Settings()
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    name = bootstrapping.checked(Name, name, "--name")
    typer.echo(asyncio.run(_create_key(settings, organization, create, name, level, expires_at)))


@keys.command("encryption")
def make_encryption_key() -> None:
    """Make a key for DEPLOYERP_ENCRYPTION_KEYS."""
    typer.echo(new_encryption_key())


@keys.command("reseal")
def reseal_secrets(
    home: Annotated[Path | None, typer.Option(help="Use the embedded control plane of this folder.")] = None,
) -> None:
    """Seal every secret in the database with the first key of DEPLOYERP_ENCRYPTION_KEYS.

    Can be stopped and run again at any time. The exit status is 1 where a secret opens with none of the keys.
    """
    settings = control_plane.embedded_settings(home, _PORTS) if home else Settings()
    reports = asyncio.run(_reseal(settings))
    for report in reports:
        unreadable = f", {report.unreadable} open with no configured key" if report.unreadable else ""
        typer.echo(f"{report.table}: {report.resealed} resealed, {report.current} were current{unreadable}")
    if any(report.unreadable for report in reports):
        _note("error: add the missing key to DEPLOYERP_ENCRYPTION_KEYS, and run this again.")
        sys.exit(1)


@audit.command("verify")
def verify_audit_log(
    organization: Annotated[str | None, typer.Option(help="Slug of the only organization to check.")] = None,
    home: Annotated[Path | None, typer.Option(help="Use the embedded control plane of this folder.")] = None,
) -> None:
    """Check that no entry was changed, left out or cut off; the exit status is 1 where one was."""
    settings = control_plane.embedded_settings(home, _PORTS) if home else Settings()
    if not asyncio.run(_verify_audit_log(settings, organization)):
        sys.exit(1)


def _prepare(settings: Settings) -> None:
    """Sets up the logs of a process, unless it misses what it would find missing only once it has begun."""
    Vault(settings.encryption_keys)
    logging.configure(settings.log_level)


async def _dev(settings: Settings, ports: control_plane.Ports, reload: bool, images: bool) -> None:
    # First of all: images can take minutes, and it is told that the API is there before it listens.
    await control_plane.check_free("the API", settings.api_port)
    if images:
        await control_plane.provide_images(settings, _note)
    async with control_plane.services(settings, ports):
        await asyncio.to_thread(alembic.upgrade, configuration(settings.database_url), "head")
        _note(f"API         http://127.0.0.1:{settings.api_port}/playground")
        _note(f"Temporal UI http://127.0.0.1:{ports.temporal_ui}")
        make_key = [_own_program(), "keys", "create", "--organization", "demo", "--create"]
        make_key += ["--home", str(settings.home)]
        _note(f"A key       {shlex.join(make_key)}")
        if reload:
            await _reloading(settings)
        else:
            await _serve(settings, with_worker=True)


def _own_program() -> str:
    """What to type for this program, which need not be on the PATH."""
    beside, here = Path(sys.executable).with_name("deployerp"), Path.cwd()
    if not beside.exists():
        return "deployerp"
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


async def _reloading(settings: Settings) -> None:
    """Runs the API and the worker in a process that is started anew when the code changes."""
    os.environ.update(control_plane.environment_of(settings))
    await arun_process(
        Path(__file__).parents[1],
        target=f"{sys.executable} -m deployerp.cli serve --with-worker",
        target_type="command",
    )


async def _serve(settings: Settings, with_worker: bool) -> None:
    server = Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.api_host,
            port=settings.api_port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            # None but these: anybody can write `X-Forwarded-For`.
            forwarded_allow_ips=[str(network) for network in settings.trusted_proxies],
        )
    )
    if not with_worker:
        await server.serve()
        return
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(settings, stop))
    # A worker that fails must not leave an API that accepts what nobody does.
    working.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        # It leaves by SystemExit when it cannot begin.
        await server.serve()
    finally:
        stop.set()
        await working


async def _work(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run_worker(settings, stop)


async def _create_key(
    settings: Settings, slug: str, create: bool, name: str, level: str, expires_at: datetime | None
) -> str:
    database = open_database(settings.database_url)
    try:
        async with session_factory(database)() as session, session.begin():
            organization = await session.scalar(select(Organization).where(col(Organization.slug) == slug))
            if organization is None and not create:
                raise NotFound(
                    f"There is no organization {slug!r}: check --organization,"
                    " or make it with `deployerp bootstrap`."
                )
            if organization is None:
                # Only of a new one: those that are there may have begun under another rule.
                slug = bootstrapping.checked(Slug, slug, "--organization")
                # Whoever has the machine has no limit; tenants of a service get their plans otherwise.
                organization = Organization(name=slug, slug=slug, plan="enterprise")
                await add_organization(session, organization)
            _, token = await add_key(session, organization.id, name, level, expires_at)
            return token
    finally:
        await database.dispose()


async def _reset_password(settings: Settings, slug: str, email: str) -> str:
    database = open_database(settings.database_url)
    try:
        async with session_factory(database)() as session, session.begin():
            return await beginnings.reset_password(session, slug, email)
    finally:
        await database.dispose()


async def _reseal(settings: Settings) -> list[Resealed]:
    vault = Vault(settings.encryption_keys)
    database = open_database(settings.database_url)
    try:
        return await reseal(session_factory(database), vault)
    finally:
        await database.dispose()


async def _verify_audit_log(settings: Settings, slug: str | None) -> bool:
    database = open_database(settings.database_url)
    try:
        sessions = session_factory(database)
        whole = [await _is_whole(sessions, each) for each in await _organizations(sessions, slug)]
    finally:
        await database.dispose()
    return all(whole)


async def _organizations(sessions: SessionFactory, slug: str | None) -> Sequence[Organization]:
    chosen = select(Organization).order_by(col(Organization.slug))
    if slug is not None:
        chosen = chosen.where(col(Organization.slug) == slug)
    async with sessions() as session:
        found = (await session.scalars(chosen)).all()
    if slug is not None and not found:
        raise NotFound(
            f"There is no organization {slug} here: is --home or DEPLOYERP_DATABASE_URL another's?"
        )
    return found


async def _is_whole(sessions: SessionFactory, organization: Organization) -> bool:
    found = await verify(sessions, organization.id)
    if isinstance(found, Broken):
        typer.echo(f"{organization.slug}: broken at entry {found.sequence}: {found.reason}")
        return False
    typer.echo(f"{organization.slug}: whole up to entry {found.entries}, hash {found.last_hash}")
    return True


def main() -> None:
    """Runs the command; an error that a user can meet is told in words, not as a traceback."""
    try:
        app()
    except Exception as error:
        lines = failures.in_words(error)
        if lines is None:
            raise
        for line in lines:
            _note(f"error: {line}")
        sys.exit(1)
