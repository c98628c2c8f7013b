"""`deployerp bootstrap` and `deployerp users`: organizations, owners and their passwords."""

import json
from typing import Annotated, Any

import typer

from deployerp.cli.options import EmbeddedHome, check_option, note, settings_of, with_database
from deployerp.core.fields import Name, Slug
from deployerp.database.sessions import SessionFactory
from deployerp.domain.bootstrap import Bootstrapped, bootstrap_organization
from deployerp.domain.bootstrap import reset_password as issue_token
from deployerp.domain.plans import PLANS, Plan
from deployerp.domain.set_password_tokens import LIFETIME
from deployerp.domain.users import Email

users = typer.Typer(help="Manage users.", no_args_is_help=True)
SET_PASSWORD = (
    'The owner of the token sets a password with POST /v1/auth/set-password {"token", "password"},'
    f" once, within {LIFETIME.days} days."
)


def bootstrap(
    organization: Annotated[str, typer.Option(help="Slug of the new organization.")],
    email: Annotated[str, typer.Option(help="E-mail address of its owner.")],
    name: Annotated[str | None, typer.Option(help="Its name; by default the slug.")] = None,
    plan: Annotated[str, typer.Option(help=f"One of {', '.join(PLANS)}.")] = "enterprise",
    existing_user: Annotated[
        bool, typer.Option("--existing-user", help="The owner already has an account.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    home: EmbeddedHome = None,
) -> None:
    """Create an organization, its owner and a first API key, and print the credentials once.

    A new owner sets a password with the one-time token. An existing user keeps the password and becomes the
    owner only with --existing-user.
    """
    settings = settings_of(home)
    wanted = {
        "slug": check_option(Slug, organization, "--organization"),
        "name": check_option(Name, name or organization, "--name"),
        "email": check_option(Email, email, "--email"),
        "plan": check_option(Plan, plan, "--plan"),
        "existing_user": existing_user,
    }

    async def create(sessions: SessionFactory) -> Bootstrapped:
        async with sessions() as session, session.begin():
            created = await bootstrap_organization(session, **wanted)
            if created.known_in is not None and not as_json:
                # Before the commit makes it visible to others.
                typer.echo(f"Member of     {', '.join(created.known_in) or 'no organization'}")
            return created

    created = with_database(settings, create)
    typer.echo(json.dumps(_as_data(created)) if as_json else _as_text(created))


@users.callback()
def group() -> None:
    """Without this, Typer makes a single command the group itself."""


@users.command("reset-password")
def reset_password(
    organization: Annotated[str, typer.Option(help="Slug of an organization of the user.")],
    email: Annotated[str, typer.Option(help="E-mail address of the user.")],
    home: EmbeddedHome = None,
) -> None:
    """Create a one-time token with which a user sets a new password, and print it once.

    For users with a verified address, whose password no admin may reset. Check who asks for it.
    """
    address = check_option(Email, email, "--email")

    async def issue(sessions: SessionFactory) -> str:
        async with sessions() as session, session.begin():
            return await issue_token(session, organization, address)

    typer.echo(with_database(settings_of(home), issue))
    note(SET_PASSWORD)


def _as_data(created: Bootstrapped) -> dict[str, Any]:
    organization, owner, key = created.organization, created.owner, created.key
    return {
        "organization": {"id": str(organization.id), "slug": organization.slug, "plan": organization.plan},
        "owner": {
            "id": str(owner.id),
            "email": owner.email,
            "setPasswordToken": created.set_password_token,
            "organizations": list(created.known_in or ()),
        },
        "key": {"id": str(key.id), "level": key.level, "token": created.token},
    }


def _as_text(created: Bootstrapped) -> str:
    organization = created.organization
    set_password = created.set_password_token or "not needed: the owner has an account and keeps the password"
    lines = [
        f"Organization  {organization.slug} ({organization.name}), {organization.plan}",
        f"Owner         {created.owner.email}",
        f"Set password  {set_password}",
        f"First key     {created.token}",
        "",
    ]
    if created.set_password_token:
        lines.append(SET_PASSWORD)
    return "\n".join([*lines, "Save these credentials. They will not be shown again."])
