"""Who runs the migrations on PostgreSQL: an owner without a superuser's rights, with all that they need."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from alembic import command
from sqlalchemy import func, select, text

from deployerp.database import tenancy
from deployerp.database.sessions import (
    as_control_plane,
    open_database,
    session_factory,
    tenant_transaction,
)
from deployerp.database.tenancy import TENANT_ROLE
from deployerp.domain.audit.log import append
from deployerp.domain.servers import Server
from deployerp.domain.tables import metadata
from deployerp.domain.users import User
from deployerp.migrations import configuration
from tests.conftest import run_on_postgres
from tests.migrations.tenants import VISIBLE, deed, refused, rows, settle

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Owner:
    """Somebody who owns a database and is no superuser."""

    server: str
    name: str

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://{self.name}@{self.server}/{self.name}"

    async def migrate(self) -> None:
        # Migrations begin an event loop of their own.
        await asyncio.to_thread(command.upgrade, configuration(self.url), "head")


@pytest.fixture
async def owner(
    postgres_server: str, migrated_postgres: str, request: pytest.FixtureRequest
) -> AsyncIterator[Owner]:
    name = f"owner_{uuid4().hex}"
    # The role of tenants is there already, as it is for the second database of a cluster.
    await run_on_postgres(postgres_server, f"CREATE ROLE {name} LOGIN {request.param}")
    await run_on_postgres(postgres_server, f"CREATE DATABASE {name} OWNER {name}")
    yield Owner(postgres_server, name)
    await run_on_postgres(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")
    await run_on_postgres(postgres_server, f"DROP ROLE {name}")


async def run(program: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, program, env={**os.environ, **environment}, capture_output=True, text=True
    )


async def check_walls(url: str) -> None:
    """Acts as the control plane and as two tenants."""
    engine = open_database(url)
    sessions = session_factory(engine)
    tenants = [await settle(sessions), await settle(sessions)]
    async with sessions() as session:
        assert (
            await session.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")) is False
        )
        for name in metadata.tables:
            # One installation for both tenants.
            assert len(await rows(session, name)) == (1 if name == "installations" else 2), name
    for tenant in tenants:
        async with tenant_transaction(sessions, tenancy.Tenant(tenant.id)) as session:
            for name in VISIBLE:
                assert len(await rows(session, name)) == 1, name
            assert [found.id for found in await session.scalars(select(Server))] == [tenant.of("servers").id]
            assert await append(session, tenant.id, deed()) == 2
            async with as_control_plane(session):
                assert await session.scalar(select(func.count()).select_from(User)) == 2
    async with sessions() as session:
        await refused(session, text("DELETE FROM audit_log"), "append-only")
    await engine.dispose()


@pytest.mark.parametrize("owner", ["CREATEROLE"], indirect=True)
async def test_an_owner_who_may_make_roles_needs_nobody(owner: Owner) -> None:
    await owner.migrate()
    await check_walls(owner.url)


@pytest.mark.parametrize("owner", ["NOCREATEROLE"], indirect=True)
async def test_an_owner_who_may_not_make_roles_is_told_what_to_ask_for(owner: Owner) -> None:
    migrate = [sys.executable, "-m", "deployerp.cli", "migrate"]
    ended = await run(migrate, DEPLOYERP_DATABASE_URL=owner.url)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    create, grant = re.findall("`(.+?)`", ended.stderr)
    assert create == f"CREATE ROLE {TENANT_ROLE} NOLOGIN"
    assert grant == f"GRANT {TENANT_ROLE} TO {owner.name}"
    await run_on_postgres(owner.server, grant)
    await owner.migrate()
    await check_walls(owner.url)


@pytest.mark.parametrize("owner", ["CREATEROLE"], indirect=True)
async def test_walls_come_down_and_up_again(owner: Owner) -> None:
    await owner.migrate()
    await asyncio.to_thread(command.downgrade, configuration(owner.url), "base")
    engine = open_database(owner.url)
    async with engine.connect() as connection:
        query = text(
            "SELECT (SELECT count(*) FROM pg_policies)"
            " + (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal)"
            " + (SELECT count(*) FROM pg_class WHERE relrowsecurity OR relforcerowsecurity)"
            " + (SELECT count(*) FROM information_schema.role_table_grants WHERE grantee = :role)"
        )
        assert await connection.scalar(query, {"role": TENANT_ROLE}) == 0
    await engine.dispose()
    await owner.migrate()
    await check_walls(owner.url)


async def test_the_databases_of_the_compose_file_are_all_that_migrations_need(
    postgres_server: str, migrated_postgres: str, tmp_path: Path
) -> None:
    # Its names belong to a cluster of its own; in this one they are made unique, and tenants have their role.
    unique = uuid4().hex
    source = (ROOT / "deploy/postgres/create-databases.sh").read_text()
    made, source = source.split("CREATE ROLE deployerp_tenant NOLOGIN;\n")
    script = tmp_path / "create-databases.sh"
    script.write_text(re.sub(r"\b(deployerp|temporal(_visibility)?)\b", rf"\1_{unique}", made + source))
    host, port = postgres_server.split(":")
    ended = await run(
        ["/bin/bash", str(script)],
        PGHOST=host,
        PGPORT=port,
        APPLICATION_ROLE_PASSWORD="a'b",
        TEMPORAL_ROLE_PASSWORD="c",
    )
    assert ended.returncode == 0, ended.stderr
    owner = Owner(postgres_server, f"deployerp_{unique}")
    await owner.migrate()
    await check_walls(owner.url)
    for name in ("deployerp", "temporal", "temporal_visibility"):
        await run_on_postgres(postgres_server, f"DROP DATABASE {name}_{unique} WITH (FORCE)")
    for name in ("deployerp", "temporal"):
        await run_on_postgres(postgres_server, f"DROP ROLE {name}_{unique}")
