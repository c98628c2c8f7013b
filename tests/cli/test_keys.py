"""`deployerp keys create`: a key for whoever has the machine, and a trace of it in the audit log."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from click.testing import Result
from sqlalchemy import select
from sqlmodel import col
from typer.testing import CliRunner

from deployerp.cli.app import app
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.api_keys import ApiKey, key_id_of
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.audit.verification import Broken, verify
from deployerp.domain.organizations import Organization
from tests.conftest import Client

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYERP_DATABASE_URL", settings.database_url)


async def create(*options: str, organization: str = "acme", new: bool = True) -> Result:
    # It runs a loop of its own.
    command = ["keys", "create", "--organization", organization, *options]
    command += ["--create"] if new else []
    return await asyncio.to_thread(CliRunner().invoke, app, command)


async def token(*options: str, organization: str = "acme") -> str:
    result = await create(*options, organization=organization)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


async def rows(sessions: SessionFactory, model: type) -> Sequence:
    async with sessions() as session:
        return (await session.scalars(select(model).order_by(col(model.created_at)))).all()  # type: ignore[attr-defined]


async def test_keys_and_the_organization_that_is_made_are_in_the_audit_log(
    client: Client, sessions: SessionFactory
) -> None:
    tokens = [await token(), await token("--name", "second", "--level", "read")]
    organization = (await rows(sessions, Organization))[-1]
    made = [key for key in await rows(sessions, ApiKey) if key.organization_id == organization.id]
    assert [key.key_id for key in made] == [key_id_of(each) for each in tokens]
    assert await Client(client.http, organization.id, tokens[0]).data("GET", "/v1/servers") == []
    entries = await rows(sessions, AuditEntry)
    assert {(entry.actor_type, entry.actor_id) for entry in entries} == {("system", None)}
    assert [(entry.action, entry.resource_type, entry.resource_id) for entry in entries] == [
        ("bootstrap", "organization", organization.id),
        ("create_api_key", "api_key", made[0].id),
        ("create_api_key", "api_key", made[1].id),
    ]
    told = [entry.after for entry in entries]
    assert told[0]["slug"] == "acme"
    assert [(each["name"], each["level"]) for each in told[1:]] == [
        ("first key", "admin"),
        ("second", "read"),
    ]
    for key, each in zip(made, tokens, strict=True):
        assert each not in str(told)
        assert key.token_digest not in str(told)
    assert not isinstance(await verify(sessions, organization.id), Broken)


@one_database
async def test_a_key_expires_after_its_days_or_never(sessions: SessionFactory) -> None:
    for days in (("--days", "1"), ()):
        await token(*days)
    day, never = await rows(sessions, ApiKey)
    assert timedelta(hours=23) < day.expires_at - utc_now() <= timedelta(days=1)
    assert never.expires_at is None


@one_database
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--days", "0"), "--days"),
        (("--days", "-5"), "--days"),
        (("--days", "4000000"), "--days"),
        (("--name", ""), "--name"),
        (("--name", "x" * 101), "--name"),
        (("--name", "a\u202eb"), "--name"),
        (("--level", "root"), "--level"),
        (("--organization", "Acme!"), "--organization"),
        (("--organization", ""), "--organization"),
    ],
    ids=ascii,
)
async def test_what_breaks_a_rule_makes_nothing(
    sessions: SessionFactory, options: tuple[str, ...], named: str
) -> None:
    result = await create(*options)
    assert result.exit_code == 2, result.output
    assert named in result.output
    assert await rows(sessions, Organization) == await rows(sessions, ApiKey) == []


@one_database
async def test_an_organization_that_is_there_keeps_a_slug_of_older_rules(sessions: SessionFactory) -> None:
    async with sessions() as session, session.begin():
        session.add(Organization(name="Old", slug="Old_One"))
    await token(organization="Old_One")
    assert len(await rows(sessions, Organization)) == len(await rows(sessions, ApiKey)) == 1


@pytest.mark.fault("21")
@one_database
async def test_a_key_for_an_unknown_organization_is_refused(sessions: SessionFactory) -> None:
    await token()
    result = await create(organization="acem", new=False)
    assert result.exit_code == 1
    assert "Organization 'acem' does not exist" in str(result.exception)
    assert "deployerp bootstrap" in str(result.exception)
    assert len(await rows(sessions, Organization)) == len(await rows(sessions, ApiKey)) == 1
    assert (await create(organization="acme", new=False)).exit_code == 0
