"""`deployerp audit`: the audit log."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from sqlalchemy import select
from sqlmodel import col

from deployerp.cli.options import EmbeddedHome, settings_of, with_database
from deployerp.core.errors import NotFound
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.verification import Broken, verify
from deployerp.domain.organizations import Organization

app = typer.Typer(help="Verify the audit log.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Without this, Typer makes a single command the group itself."""


@app.command("verify")
def verify_log(
    organization: Annotated[str | None, typer.Option(help="Slug of the only organization to check.")] = None,
    home: EmbeddedHome = None,
) -> None:
    """Verify that no entry was changed, removed or cut off. The exit status is 1 if one was."""

    async def check(sessions: SessionFactory) -> bool:
        intact = [await _check(sessions, each) for each in await _find(sessions, organization)]
        return all(intact)

    if not with_database(settings_of(home), check):
        sys.exit(1)


async def _find(sessions: SessionFactory, slug: str | None) -> Sequence[Organization]:
    query = select(Organization).order_by(col(Organization.slug))
    if slug is not None:
        query = query.where(col(Organization.slug) == slug)
    async with sessions() as session:
        found = (await session.scalars(query)).all()
    if slug is not None and not found:
        raise NotFound(f"Organization {slug} does not exist here: check --home or DEPLOYERP_DATABASE_URL.")
    return found


async def _check(sessions: SessionFactory, organization: Organization) -> bool:
    found = await verify(sessions, organization.id)
    if isinstance(found, Broken):
        typer.echo(f"{organization.slug}: BROKEN at entry {found.sequence}: {found.reason}")
        return False
    typer.echo(f"{organization.slug}: OK, {found.entries} entries verified, hash {found.last_hash}")
    return True
