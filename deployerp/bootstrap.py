"""`deployerp bootstrap` in words: what is asked, and what is told of the organization that was made."""

import asyncio
import json
import os
import sys
from typing import Any

import typer
from pydantic import TypeAdapter, ValidationError

from deployerp.domain.beginnings import Beginning, begin
from deployerp.domain.database import open_database, session_factory
from deployerp.domain.names import Name, Slug
from deployerp.domain.passwords import check_password
from deployerp.domain.plans import Plan
from deployerp.domain.secrets import new_password
from deployerp.domain.settings import Settings
from deployerp.domain.users import Email

PASSWORD_VARIABLE = "DEPLOYERP_BOOTSTRAP_PASSWORD"  # noqa: S105  (its name, not a password)


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
    if existing_user:
        _check_no_password()
        given = made_up = None
    else:
        given = _given_password(wanted["email"])
        made_up = None if given else new_password()
    made = asyncio.run(_begin(settings, wanted | {"password": given or made_up}, as_json))
    typer.echo(json.dumps(_as_data(made, made_up)) if as_json else _in_words(made, made_up))


def checked(kind: Any, value: str, option: str) -> Any:
    """A value that keeps to the rule of its kind. Raises `typer.BadParameter`, which names the option."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"], param_hint=option) from None


def _check_no_password() -> None:
    if os.environ.get(PASSWORD_VARIABLE):
        raise typer.BadParameter(
            "must not be set with --existing-user: who is a user already keeps their password",
            param_hint=PASSWORD_VARIABLE,
        )


def _given_password(email: str) -> str | None:
    """What the environment says, or whoever sits at the terminal; None where it is to be made up."""
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is None and sys.stdin.isatty():
        question = "Password of the owner (none: one is made up)"
        given = typer.prompt(question, "", hide_input=True, confirmation_prompt=True, show_default=False)
    if not given:
        return None
    try:
        check_password(given, email)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="the password") from None
    return given


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


def _as_data(made: Beginning, password: str | None) -> dict[str, Any]:
    organization, owner, key = made.organization, made.owner, made.key
    return {
        "organization": {"id": str(organization.id), "slug": organization.slug, "plan": organization.plan},
        "owner": {
            "id": str(owner.id),
            "email": owner.email,
            "password": password,
            "organizations": list(made.known_in or ()),
        },
        "key": {"id": str(key.id), "level": key.level, "token": made.token},
    }


def _in_words(made: Beginning, password: str | None) -> str:
    known = "as given" if made.known_in is None else "as it was: they are a user already"
    return "\n".join(
        (
            f"Organization  {made.organization.slug} ({made.organization.name}), {made.organization.plan}",
            f"Owner         {made.owner.email}",
            f"Password      {password or known}",
            f"First key     {made.token}",
            "",
            "What is secret here is shown this once: keep it now.",
        )
    )
