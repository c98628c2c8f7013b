"""Whether the API says that it can do its work."""

import time
from pathlib import Path

import pytest
from sqlalchemy import text

from deployerp.api import health
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from tests.conftest import free_port, open_api


async def test_it_is_ready_with_its_database_and_temporal(http) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_it_is_alive_and_not_ready_without_temporal(settings: Settings) -> None:
    without = settings.model_copy(update={"temporal_address": f"127.0.0.1:{free_port()}"})
    async with open_api(without) as http:
        started = time.monotonic()
        answer = await http.get("/readyz")
        assert time.monotonic() - started < 4
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert (await http.get("/healthz")).status_code == 200


async def is_ready(http) -> bool:
    answer = await http.get("/readyz")
    if answer.status_code == 200:
        return True
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "unavailable")
    assert error["message"] == "The database schema is missing or out of date: run `deployerp migrate`."
    return False


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_it_is_not_ready_on_an_empty_database(settings: Settings, tmp_path: Path) -> None:
    empty = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/empty.db"}
    async with open_api(settings.model_copy(update=empty)) as http:
        assert not await is_ready(http)


async def test_it_is_not_ready_on_the_schema_of_an_older_version(
    http, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That of a newer version is there before the processes of this one have been replaced.
    monkeypatch.setattr(health, "_outdated", lambda: frozenset({"0000"}))
    for revision, ready in (("0000", False), ("9999", True), (None, False)):
        change = f"UPDATE alembic_version SET version_num = '{revision}'"
        async with sessions() as session, session.begin():
            await session.execute(text(change if revision else "DELETE FROM alembic_version"))
        assert await is_ready(http) is ready
