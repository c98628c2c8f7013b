"""`deployerp bootstrap`: from an empty database to somebody who can do everything."""

import asyncio
import json

import httpx
import pytest
from click.testing import Result
from sqlalchemy import func, select, update
from sqlmodel import col
from typer.testing import CliRunner

from deployerp.cli.app import app
from deployerp.core.errors import Conflict, NotFound
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.audit.verification import Broken, verify
from deployerp.domain.organizations import Organization
from deployerp.domain.users import Member, User
from tests.api.people import PASSWORD, choose_password
from tests.conftest import Client

ACME = ("--organization", "acme", "--email", "Ada@Example.com")
BETA = ("--organization", "beta", "--email", "ada@example.com")
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYERP_DATABASE_URL", settings.database_url)


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
    # The operator has vouched for the address.
    assert owner["emailVerifiedAt"] is not None
    assert (await choose_password(http, told["owner"]["setPasswordToken"])).status_code == 200
    assert await signed_in(http, "ada@example.com", PASSWORD) == 200
    async with sessions() as session:
        first = (await session.scalars(select(AuditEntry).order_by(AuditEntry.sequence))).first()  # type: ignore[arg-type]
    assert first is not None
    assert (first.actor_type, first.action) == ("system", "bootstrap")
    assert not isinstance(await verify(sessions, first.organization_id), Broken)


async def test_the_audit_log_tells_of_organization_owner_and_key(sessions: SessionFactory) -> None:
    told = await made(*ACME, "--name", "Acme Ltd")
    async with sessions() as session:
        entries = (await session.scalars(select(AuditEntry).order_by(col(AuditEntry.sequence)))).all()
    assert {(entry.actor_type, entry.actor_id) for entry in entries} == {("system", None)}
    assert [(entry.action, entry.resource_type, str(entry.resource_id)) for entry in entries] == [
        ("bootstrap", "organization", told["organization"]["id"]),
        ("create_user", "user", told["owner"]["id"]),
        ("create_api_key", "api_key", told["key"]["id"]),
    ]
    assert [entry.before for entry in entries] == [None, None, None]
    organization, owner, key = (entry.after or {} for entry in entries)
    assert (organization["slug"], organization["name"]) == ("acme", "Acme Ltd")
    assert (owner["email"], owner["role"]) == ("ada@example.com", "owner")
    assert (key["name"], key["level"]) == ("first key", "admin")
    for secret in (told["owner"]["setPasswordToken"], told["key"]["token"], "argon2", "Hash", "Digest"):
        assert secret not in str([organization, owner, key])


@one_database
async def test_it_is_told_in_words_too(http: httpx.AsyncClient) -> None:
    result = await bootstrap(*ACME)
    assert result.exit_code == 0
    told = dict(line.split("  ", 1) for line in result.stdout.splitlines() if "  " in line)
    assert told["Organization"] == "acme (acme), enterprise"
    assert (await choose_password(http, told["Set password"].strip())).status_code == 200
    assert await signed_in(http, "ada@example.com", PASSWORD) == 200
    assert "POST /v1/auth/set-password" in result.stdout
    key = Client(http, None, told["First key"].strip())  # type: ignore[arg-type]
    assert await key.data("GET", "/v1/servers") == []


async def test_an_organization_that_exists_is_left_as_it_is(sessions: SessionFactory) -> None:
    await made(*ACME)
    result = await bootstrap("--organization", "acme", "--email", "mallory@example.com")
    assert isinstance(result.exception, Conflict)
    assert "deployerp keys create --organization acme" in result.exception.message
    assert [await count(sessions, model) for model in (Organization, User, Member)] == [1, 1, 1]


# Owners who are known already.


async def test_an_owner_of_two_organizations_keeps_the_password(
    http: httpx.AsyncClient, sessions: SessionFactory
) -> None:
    first = await made(*ACME)
    second = await made(*BETA, "--existing-user")
    assert second["owner"] == first["owner"] | {"setPasswordToken": None, "organizations": ["acme"]}
    assert (await choose_password(http, first["owner"]["setPasswordToken"])).status_code == 200
    assert await signed_in(http, "ada@example.com", PASSWORD) == 422
    assert await signed_in(http, "ada@example.com", PASSWORD, organization="beta") == 200
    async with sessions() as session:
        query = select(AuditEntry).where(col(AuditEntry.action) == "create_user")
        _, entry = (await session.scalars(query.order_by(col(AuditEntry.created_at)))).all()
    assert str(entry.organization_id) == second["organization"]["id"]
    # As where the API adds a known user: they were there before, and now they have a role.
    assert (entry.before or {})["email"] == "ada@example.com"
    assert "role" not in (entry.before or {})
    assert (entry.after or {})["role"] == "owner"


@pytest.mark.fault("18")
async def test_who_has_made_a_user_of_the_owner_s_address_does_not_get_the_organization(
    client: Client, sessions: SessionFactory
) -> None:
    trap = {"email": "ada@example.com", "name": "Ada", "role": "viewer"}
    token = (await client.data("POST", "/v1/users", trap, 201))["setPasswordToken"]
    assert (await choose_password(client.http, token, "mallory knows this")).status_code == 200
    # Nor do they keep the owner from it: the address is theirs in that organization only.
    told = await made(*BETA)
    for organization in ({}, {"organization": "beta"}):
        assert await signed_in(client.http, "ada@example.com", "mallory knows this", **organization) == 401
    assert (await choose_password(client.http, told["owner"]["setPasswordToken"])).status_code == 200
    assert await signed_in(client.http, "ada@example.com", PASSWORD) == 200
    assert [await count(sessions, model) for model in (Organization, User, Member)] == [2, 2, 2]


@pytest.mark.fault("18")
async def test_an_unverified_user_is_no_known_owner(client: Client, sessions: SessionFactory) -> None:
    trap = {"email": "ada@example.com", "name": "Ada", "role": "viewer"}
    await client.data("POST", "/v1/users", trap, 201)
    result = await bootstrap(*BETA, "--existing-user")
    assert isinstance(result.exception, NotFound)
    assert [await count(sessions, model) for model in (Organization, User, Member)] == [1, 1, 1]


async def test_a_known_owner_is_taken_only_where_it_is_said(sessions: SessionFactory) -> None:
    await made(*ACME)
    result = await bootstrap(*BETA)
    assert isinstance(result.exception, Conflict)
    # It says where the user is from, and what to do for one who is meant.
    for words in ("ada@example.com", "acme", "--existing-user"):
        assert words in result.exception.message
    assert [await count(sessions, model) for model in (Organization, User, Member)] == [1, 1, 1]


# Resetting a password.


async def reset(*options: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["users", "reset-password", *options])


@pytest.mark.fault("18")
async def test_the_operator_resets_the_password_of_a_verified_user(
    http: httpx.AsyncClient, sessions: SessionFactory
) -> None:
    told = await made(*ACME)
    await choose_password(http, told["owner"]["setPasswordToken"])
    result = await reset(*ACME)
    assert result.exit_code == 0, result.output
    token = result.stdout.strip()
    assert "7 days" in result.stderr
    assert (await choose_password(http, token, "another horse battery")).status_code == 200
    assert await signed_in(http, "ada@example.com", "another horse battery") == 200
    assert await signed_in(http, "ada@example.com", PASSWORD) == 401
    async with sessions() as session:
        entries = (await session.scalars(select(AuditEntry).order_by(col(AuditEntry.sequence)))).all()
    (entry,) = [entry for entry in entries if entry.action == "reset_password"]
    assert (entry.actor_type, str(entry.resource_id)) == ("system", told["owner"]["id"])
    assert token not in str(entry)


@one_database
@pytest.mark.fault("18")
async def test_the_operator_is_told_who_is_not_there_or_disabled(sessions: SessionFactory) -> None:
    await made(*ACME)
    for options in (
        ("--organization", "beta", "--email", "ada@example.com"),
        ("--organization", "acme", "--email", "grace@example.com"),
    ):
        assert isinstance((await reset(*options)).exception, NotFound)
    async with sessions() as session, session.begin():
        await session.execute(update(User).values(disabled_at=utc_now()))
    assert isinstance((await reset(*ACME)).exception, Conflict)


@one_database
async def test_where_a_known_owner_is_a_member_is_told_before_it_is_done(http: httpx.AsyncClient) -> None:
    await made(*ACME)
    await made("--organization", "gamma", "--email", "ada@example.com", "--existing-user")
    result = await bootstrap(*BETA, "--existing-user")
    lines = result.stdout.splitlines()
    assert lines[0] == "Member of     acme, gamma"
    assert lines[1].startswith("Organization  beta")
    assert "Set password  not needed" in result.stdout


async def test_a_known_owner_must_be_known(sessions: SessionFactory) -> None:
    result = await bootstrap(*BETA, "--existing-user")
    assert isinstance(result.exception, NotFound)
    assert "omit --existing-user" in result.exception.message
    assert [await count(sessions, model) for model in (Organization, User, Member)] == [0, 0, 0]


@one_database
async def test_a_disabled_user_is_no_owner(sessions: SessionFactory) -> None:
    await made(*ACME)
    async with sessions() as session, session.begin():
        await session.execute(update(User).values(disabled_at=utc_now()))
    result = await bootstrap(*BETA, "--existing-user")
    assert isinstance(result.exception, Conflict)
    assert "disabled" in result.exception.message
    assert await count(sessions, Organization) == 1


@one_database
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--organization", "Acme!", "--email", "ada@example.com"), "--organization"),
        (("--organization", "acme", "--email", "ada"), "--email"),
        ((*ACME, "--plan", "free"), "--plan"),
        ((*ACME, "--name", "x" * 101), "--name"),
    ],
)
async def test_what_breaks_a_rule_makes_nothing(
    sessions: SessionFactory, options: tuple[str, ...], named: str
) -> None:
    result = await bootstrap(*options)
    assert result.exit_code == 2
    assert named in result.output
    assert "Value error" not in result.output
    assert await count(sessions, Organization) == 0
