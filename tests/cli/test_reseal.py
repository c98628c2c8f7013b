"""`deployerp keys reseal`: after it, the first encryption key opens every secret, and the others none."""

import asyncio
import json
import re

import pytest
from click.testing import Result
from sqlalchemy import func, select, update
from typer.testing import CliRunner

from deployerp.cli.app import app
from deployerp.core.secrets import Vault, new_encryption_key
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain import resealing
from deployerp.domain.resealing import sealed_columns
from deployerp.domain.tables import metadata
from tests.conftest import Fleet

# What `Vault.seal` makes: a Fernet token begins with its version and the high bytes of the time.
_SEALED = re.compile(r"gAAAAA[\w-]+=*")


@pytest.fixture
def new_key(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """A key that is put before the one with which everything was sealed."""
    key = new_encryption_key()
    old = [each.get_secret_value() for each in settings.encryption_keys]
    monkeypatch.setenv("DEPLOYERP_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("DEPLOYERP_ENCRYPTION_KEYS", json.dumps([key, *old]))
    return key


async def reseal() -> Result:
    # It runs a loop of its own.
    return await asyncio.to_thread(CliRunner().invoke, app, ["keys", "reseal"])


async def texts(sessions: SessionFactory) -> dict[str, list[str]]:
    """What is sealed anywhere in the database, by table and column, whatever the column is called."""
    found: dict[str, list[str]] = {}
    async with sessions() as session:
        for table in metadata.sorted_tables:
            for row in (await session.execute(select(table))).mappings():
                for name, value in row.items():
                    for sealed in _SEALED.findall(str(value)):
                        found.setdefault(f"{table.name}.{name}", []).append(sealed)
    return found


async def fill(fleet: Fleet, sessions: SessionFactory, vault: Vault) -> None:
    """Has something in every sealed column, most of it through the API."""
    client = fleet.client
    server = await fleet.server()
    await fleet.instance(server["id"], envVars={"A": {"value": "b", "secret": True}})
    endpoint = {"url": "https://example.com/", "headers": {"Authorization": "Bearer x"}}
    answer = await client.request("POST", "/v1/webhook-endpoints", endpoint, {"Idempotency-Key": "key"})
    await client.data("POST", f"/v1/webhook-endpoints/{answer.json()['data']['id']}/rotate-secret")
    async with sessions() as session, session.begin():
        for table, columns in sealed_columns().items():
            for column in columns:
                empty = update(table).where(column.is_(None))
                await session.execute(empty.values({column.name: vault.seal(column.name)}))


@pytest.mark.fault("22")
async def test_every_secret_is_sealed_with_the_first_key(
    fleet: Fleet, sessions: SessionFactory, settings: Settings, new_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resealing, "_BATCH", 2)
    old = Vault(settings.encryption_keys)
    await fill(fleet, sessions, old)
    before = await texts(sessions)
    # By the data, not by the names: a column that is called otherwise would be forgotten.
    assert sorted(before) == sorted(str(column) for each in sealed_columns().values() for column in each)
    tags = await changes(sessions)

    result = await reseal()
    assert result.exit_code == 0, result.output
    secrets = sum(len(each) for each in before.values())
    assert sum(int(count) for count in re.findall(r"(\d+) resealed", result.stdout)) == secrets
    only_new = Vault(settings.model_validate({"encryption_keys": [new_key]}).encryption_keys)
    after = await texts(sessions)
    opened = {name: [only_new.open(each) for each in found] for name, found in after.items()}
    assert opened == {name: [old.open(each) for each in found] for name, found in before.items()}
    assert await changes(sessions) == tags
    # None of it is told.
    assert not _SEALED.search(result.output)
    assert all(text not in result.output for found in opened.values() for text in found if len(text) > 8)

    # Again: there is nothing left to do.
    again = await reseal()
    assert sum(int(count) for count in re.findall(r"(\d+) current", again.stdout)) == secrets
    assert await texts(sessions) == after


async def changes(sessions: SessionFactory) -> list[object]:
    """When the rows with secrets were changed, as their readers see it."""
    async with sessions() as session:
        return [
            await session.scalar(select(func.max(table.c.updated_at)).select_from(table))
            for table in sealed_columns()
        ]


@pytest.mark.fault("22")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_opens_with_no_key_is_counted_and_stops_nothing(
    fleet: Fleet, sessions: SessionFactory, new_key: str
) -> None:
    await fleet.provider()
    lost = await fleet.provider("lost")
    foreign = Vault(Settings.model_validate({"encryption_keys": [new_encryption_key()]}).encryption_keys)
    providers = metadata.tables["providers"]
    async with sessions() as session, session.begin():
        named = update(providers).where(providers.c.name == lost["name"])
        await session.execute(named.values(sealed_credentials=foreign.seal("{}")))
    result = await reseal()
    assert result.exit_code == 1
    assert "providers: 1 resealed, 0 current, 1 not decrypted by any configured key" in result.stdout
    assert "add the missing key to DEPLOYERP_ENCRYPTION_KEYS" in result.stderr
