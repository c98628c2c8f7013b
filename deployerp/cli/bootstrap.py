"""`deployerp bootstrap` in words: what is asked, and what is told of the organization that was made."""

import asyncio
import json
from typing import Any

import typer
from pydantic import TypeAdapter, ValidationError

from deployerp.core.fields import Name, Slug
from deployerp.core.settings import Settings
from deployerp.database.sessions import open_database, session_factory
from deployerp.domain import tables  # noqa: F401  (foreign keys find every table)
from deployerp.domain.bootstrap import Beginning, begin
from deployerp.domain.plans import Plan
from deployerp.domain.set_password_tokens import LIFETIME
from deployerp.domain.users import Email


def run(
    settings: Settings,
    *,
    slug: str,
    name: str,
    email: str,
    plan: str,
    existing_user: bool,
    as_json: bool,
) -> None:
    """Raises `typer.BadParameter` for what breaks a rule, and what `begin` raises."""
    wanted = {
        "slug": checked(Slug, slug, "--organization"),
        "name": checked(Name, name, "--name"),
        "email": checked(Email, email, "--email"),
        "plan": checked(Plan, plan, "--plan"),
    }
    made = asyncio.run(_begin(settings, wanted | {"existing_user": existing_user}, as_json))
    typer.echo(json.dumps(_as_data(made)) if as_json else _in_words(made))


def checked(kind: Any, value: str, option: str) -> Any:
    """A value that keeps to the rule of its kind. Raises `typer.BadParameter`, which names the option."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"], param_hint=option) from None


async def _begin(settings: Settings, wanted: dict[str, Any], as_json: bool) -> Beginning:
    database = open_database(settings.database_url)
    try:
        async with session_factory(database)() as session, session.begin():
            made = await begin(session, **wanted)
            if made.known_in is not None and not as_json:
                # Before it is there for others to see.
                typer.echo(f"Known in      {', '.join(made.known_in) or 'no organization'}")
            return made
    finally:
        await database.dispose()


def _as_data(made: Beginning) -> dict[str, Any]:
    organization, owner, key = made.organization, made.owner, made.key
    return {
        "organization": {"id": str(organization.id), "slug": organization.slug, "plan": organization.plan},
        "owner": {
            "id": str(owner.id),
            "email": owner.email,
            "setPasswordToken": made.set_password_token,
            "organizations": list(made.known_in or ()),
        },
        "key": {"id": str(key.id), "level": key.level, "token": made.token},
    }


def _in_words(made: Beginning) -> str:
    set_password = (
        made.set_password_token or "not needed: the owner is a user already, and keeps the password"
    )
    lines = [
        f"Organization  {made.organization.slug} ({made.organization.name}), {made.organization.plan}",
        f"Owner         {made.owner.email}",
        f"Set password  {set_password}",
        f"First key     {made.token}",
        "",
    ]
    if made.set_password_token:
        lines.append(how_to_set_password())
    return "\n".join([*lines, "What is secret here is shown this once: keep it now."])


def how_to_set_password() -> str:
    return (
        'The owner of the token chooses a password with it: POST /v1/auth/set-password {"token", "password"},'
        f" once, within {LIFETIME.days} days."
    )
