"""The migrations build what the models say, on both databases, and take it down again."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from deployerp.cli.failures import explain
from deployerp.database.sessions import open_database
from deployerp.domain.tables import metadata
from deployerp.migrations import configuration
from deployerp.migrations.search import is_compared
from tests.conftest import run_on_postgres


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with nothing in it."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
        return
    server: str = request.getfixturevalue("postgres_server")
    name = f"empty_{uuid.uuid4().hex}"
    asyncio.run(run_on_postgres(server, f"CREATE DATABASE {name}"))
    yield f"postgresql+asyncpg://postgres@{server}/{name}"
    asyncio.run(run_on_postgres(server, f"DROP DATABASE {name} WITH (FORCE)"))


def looked_at(url: str, look: Any) -> Any:
    async def run() -> Any:
        engine = open_database(url)
        async with engine.connect() as connection:
            found = await connection.run_sync(look)
        await engine.dispose()
        return found

    return asyncio.run(run())


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def checks(connection: Connection) -> dict[str, dict[str, str]]:
    """The CHECK constraints, which autogenerate does not compare, as names and the values they allow."""
    return {
        table: {
            str(each["name"]): " ".join(sorted(word.strip("'") for word in _quoted(each["sqltext"])))
            for each in inspect(connection).get_check_constraints(table)
        }
        for table in tables(connection)
    }


def _quoted(text: str) -> list[str]:
    return text.split("'")[1::2]


def test_they_build_what_the_models_say(empty_url: str) -> None:
    config = configuration(empty_url)
    command.upgrade(config, "head")
    command.check(config)
    options = {"compare_type": True, "compare_server_default": True, "include_object": is_compared}

    def difference(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))

    assert looked_at(empty_url, difference) == []
    assert looked_at(empty_url, tables) == set(metadata.tables)


def test_they_allow_the_values_that_the_models_allow(empty_url: str, tmp_path: Path) -> None:
    command.upgrade(configuration(empty_url), "head")

    def create(connection: Connection) -> dict[str, dict[str, str]]:
        metadata.create_all(connection)
        return checks(connection)

    assert looked_at(empty_url, checks) == looked_at(f"sqlite+aiosqlite:///{tmp_path / 'models.db'}", create)


def test_they_can_be_taken_back_and_run_again(empty_url: str) -> None:
    config = configuration(empty_url)
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    assert looked_at(empty_url, tables) == set()
    command.upgrade(config, "head")
    assert looked_at(empty_url, tables) == set(metadata.tables)


def test_running_them_again_changes_nothing(empty_url: str) -> None:
    config = configuration(empty_url)
    for _ in range(2):
        command.upgrade(config, "head")
    assert looked_at(empty_url, tables) == set(metadata.tables)


def test_they_are_one_line_of_steps() -> None:
    script = ScriptDirectory.from_config(configuration("sqlite+aiosqlite://"))
    assert len(script.get_heads()) == 1
    assert [each.revision for each in script.walk_revisions()][-1] == "0001"


async def test_a_migration_does_not_wait_for_a_lock_for_long(postgres_url: str) -> None:
    """Whoever comes after it would wait behind it."""
    engine = open_database(postgres_url)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("LOCK TABLE alembic_version"))
            with pytest.raises(DBAPIError) as refused:
                await asyncio.to_thread(command.upgrade, configuration(postgres_url), "head")
    finally:
        await engine.dispose()
    assert explain(refused.value) == [
        "Another session of the database holds a lock: end it, or run the command again."
    ]
