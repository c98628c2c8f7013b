"""`deployerp bootstrap`: from an empty database to somebody who can do everything."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import httpx
import pytest
from click.testing import Result
from sqlalchemy import func, select
from typer.testing import CliRunner

from deployerp.cli import app
from deployerp.domain.audit_log import AuditEntry
from deployerp.domain.audit_verification import Broken, verify
from deployerp.domain.database import SessionFactory
from deployerp.domain.errors import Conflict
from deployerp.domain.organizations import Organization
from deployerp.domain.settings import Settings
from deployerp.domain.users import Member, User
from tests.api.people import PASSWORD
from tests.conftest import Client

ACME = ("--organization", "acme", "--email", "Ada@Example.com")
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYERP_DATABASE_URL", settings.database_url)
    monkeypatch.delenv("DEPLOYERP_BOOTSTRAP_PASSWORD", raising=False)


async def bootstrap(*options: str) -> Result:
    # It runs a loop of its own.
    return await asyncio.to_thread(CliRunner().invoke, app, ["bootstrap", *options])


async def made(*options: str) -> dict:
    result = await bootstrap(*options, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def signed_in(http: httpx.AsyncClient, email: str, password: str, **more: str) -> int:
    body = {"email": email, "password": password, **more}
    return (await http.post("/v1/auth/token", json=body)).status_code


async def count(sessions: SessionFactory, model: type) -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


async def test_organization_owner_and_key_are_made_and_work(
    http: httpx.AsyncClient, sessions: SessionFactory
) -> None:
    told = await made(*ACME, "--name", "Acme Ltd", "--plan", "professional")
    assert told["organization"]["slug"] == "acme"
    key = Client(http, told["organization"]["id"], told["key"]["token"])
    me = await key.data("GET", "/v1/me")
    assert me["organization"] == told["organization"] | {"name": "Acme Ltd"}
    assert (me["organization"]["plan"], me["level"]) == ("professional", "admin")
    (owner,) = await key.data("GET", "/v1/users")
    assert (owner["id"], owner["email"], owner["role"]) == (told["owner"]["id"], "ada@example.com", "owner")
    assert await signed_in(http, "ada@example.com", told["owner"]["password"]) == 200
    async with sessions() as session:
        first = (await session.scalars(select(AuditEntry).order_by(AuditEntry.sequence))).first()  # type: ignore[arg-type]
    assert first is not None
    assert (first.actor_type, first.action) == ("system", "bootstrap")
    assert not isinstance(await verify(sessions, first.organization_id), Broken)


@one_database
async def test_it_is_told_in_words_too(http: httpx.AsyncClient) -> None:
    result = await bootstrap(*ACME)
    assert result.exit_code == 0
    told = dict(line.split("  ", 1) for line in result.stdout.splitlines() if "  " in line)
    assert told["Organization"] == "acme (acme), enterprise"
    assert await signed_in(http, "ada@example.com", told["Password"].strip()) == 200
    key = Client(http, None, told["First key"].strip())  # type: ignore[arg-type]
    assert await key.data("GET", "/v1/servers") == []


@one_database
async def test_the_password_of_the_environment_is_taken_and_not_shown(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYERP_BOOTSTRAP_PASSWORD", PASSWORD)
    result = await bootstrap(*ACME)
    assert PASSWORD not in result.output
    assert "as given" in result.stdout
    assert await signed_in(http, "ada@example.com", PASSWORD) == 200


def at_a_terminal(answers: Sequence[tuple[str, str]]) -> str:
    """Runs the command as somebody does who waits for each question before answering it; what they see."""
    ours, theirs = pty.openpty()
    # With a controlling terminal: that is where it asks for a password.
    command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "deployerp.cli", "bootstrap", *ACME]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = ""
    for question, answer in answers:
        while not seen.endswith(question):
            seen += os.read(ours, 1).decode()
        os.write(ours, f"{answer}\n".encode())
    # At the end Linux says that the other side has closed it.
    with suppress(OSError):
        while more := os.read(ours, 4096):
            seen += more.decode()
    os.close(ours)
    assert process.wait() == 0, seen
    return seen


@one_database
@pytest.mark.parametrize(("typed", "works"), [(PASSWORD, True), ("", False)], ids=["typed", "none"])
async def test_who_sits_at_a_terminal_is_asked_and_not_shown(
    http: httpx.AsyncClient, typed: str, works: bool
) -> None:
    questions = ("(none: one is made up): ", "Repeat for confirmation: ")
    seen = await asyncio.to_thread(at_a_terminal, [(question, typed) for question in questions])
    assert PASSWORD not in seen
    assert "First key     erp_live_" in seen
    assert (await signed_in(http, "ada@example.com", PASSWORD) == 200) is works


async def test_an_organization_that_exists_is_left_as_it_is(sessions: SessionFactory) -> None:
    await made(*ACME)
    result = await bootstrap("--organization", "acme", "--email", "mallory@example.com")
    assert isinstance(result.exception, Conflict)
    assert "deployerp keys create --organization acme" in result.exception.message
    assert [await count(sessions, model) for model in (Organization, User, Member)] == [1, 1, 1]


async def test_an_owner_of_two_organizations_keeps_the_password(http: httpx.AsyncClient) -> None:
    first = await made(*ACME)
    second = await made("--organization", "beta", "--email", "ada@example.com")
    assert second["owner"] == first["owner"] | {"password": None}
    password = first["owner"]["password"]
    assert await signed_in(http, "ada@example.com", password) == 422
    assert await signed_in(http, "ada@example.com", password, organization="beta") == 200


@one_database
@pytest.mark.parametrize(
    ("options", "password", "named"),
    [
        (("--organization", "Acme!", "--email", "ada@example.com"), None, "--organization"),
        (("--organization", "acme", "--email", "ada"), None, "--email"),
        ((*ACME, "--plan", "free"), None, "--plan"),
        ((*ACME, "--name", "x" * 101), None, "--name"),
        (ACME, "short", "12 to 256"),
    ],
)
async def test_what_breaks_a_rule_makes_nothing(
    sessions: SessionFactory,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    password: str | None,
    named: str,
) -> None:
    if password:
        monkeypatch.setenv("DEPLOYERP_BOOTSTRAP_PASSWORD", password)
    result = await bootstrap(*options)
    assert result.exit_code == 2
    assert named in result.output
    assert await count(sessions, Organization) == 0
