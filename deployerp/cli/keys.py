"""`deployerp keys`: API keys and encryption keys."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from sqlalchemy import select
from sqlmodel import col

from deployerp.cli.options import EmbeddedHome, check_option, note, settings_of, with_database
from deployerp.core.errors import NotFound
from deployerp.core.fields import Name, Slug
from deployerp.core.secrets import Vault, new_encryption_key
from deployerp.database.sessions import SessionFactory
from deployerp.domain.bootstrap import add_key, add_organization
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import LEVELS
from deployerp.domain.resealing import reseal

app = typer.Typer(help="Manage API keys and encryption keys.", no_args_is_help=True)
# A hundred years: later dates would exceed the last one that a database can keep.
_MOST_DAYS = 36_500


@app.command()
def create(
    organization: Annotated[str, typer.Option(help="Slug of the organization.")],
    create: Annotated[
        bool, typer.Option("--create", help="Create the organization, without limits, if it is missing.")
    ] = False,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "first key",
    level: Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.")] = "admin",
    days: Annotated[
        int | None, typer.Option(min=1, max=_MOST_DAYS, help="Days until it expires; by default never.")
    ] = None,
    home: EmbeddedHome = None,
) -> None:
    """Create an API key and print it. It is not shown again."""
    if level not in LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(LEVELS)}", param_hint="--level")
    settings = settings_of(home)
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    name = check_option(Name, name, "--name")

    async def add(sessions: SessionFactory) -> str:
        async with sessions() as session, session.begin():
            found = await session.scalar(select(Organization).where(col(Organization.slug) == organization))
            if found is None and not create:
                raise NotFound(
                    f"Organization {organization!r} does not exist: check --organization,"
                    " or create it with `deployerp bootstrap`."
                )
            if found is None:
                # Only of a new one: existing slugs may have been created under another rule.
                slug = check_option(Slug, organization, "--organization")
                # Whoever runs the machine has no limits; tenants of a service get their plans otherwise.
                found = Organization(name=slug, slug=slug, plan="enterprise")
                await add_organization(session, found)
            _, token = await add_key(session, found.id, name, level, expires_at)
            return token

    typer.echo(with_database(settings, add))


@app.command()
def encryption() -> None:
    """Generate a key for DEPLOYERP_ENCRYPTION_KEYS."""
    typer.echo(new_encryption_key())


@app.command("reseal")
def reseal_secrets(home: EmbeddedHome = None) -> None:
    """Encrypt every secret in the database with the first key of DEPLOYERP_ENCRYPTION_KEYS.

    It can be interrupted and run again. The exit status is 1 if no configured key decrypts a secret.
    """
    settings = settings_of(home)
    vault = Vault(settings.encryption_keys)
    reports = with_database(settings, lambda sessions: reseal(sessions, vault))
    for report in reports:
        unreadable = f", {report.unreadable} not decrypted by any configured key" if report.unreadable else ""
        typer.echo(f"{report.table}: {report.resealed} resealed, {report.current} current{unreadable}")
    if any(report.unreadable for report in reports):
        note("error: add the missing key to DEPLOYERP_ENCRYPTION_KEYS and run this command again.")
        sys.exit(1)
