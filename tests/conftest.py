"""Real parts, started once and shared: PostgreSQL, Temporal, and a control plane over them."""

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from alembic import command
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from xdist.scheduler import LoadScopeScheduling

from deployerp.activities.queries import Answers, serve_queries
from deployerp.activities.records import Records
from deployerp.api.app import create_app, open_context
from deployerp.core.errors import tree
from deployerp.core.secrets import Vault, new_encryption_key
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory, open_database, session_factory
from deployerp.domain.api_keys import new_api_key
from deployerp.domain.operations.messages import OperationEnd, OperationOrder, Outcome
from deployerp.domain.operations.operation import Operation
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import Level
from deployerp.domain.plans import Plan
from deployerp.drivers.temporal import Temporal
from deployerp.embedded import control_plane
from deployerp.migrations import configuration
from tests.drivers.clouds.fake_cloud import FakeClouds

_ON_POSTGRES = {"postgres_server", "postgres_url", "migrated_postgres"}


class EndToEndTogether(LoadScopeScheduling):
    """The end-to-end tests in one worker, where they share a server; every other test for itself."""

    def _split_scope(self, nodeid: str) -> str:
        return "e2e" if nodeid.startswith("tests/e2e/") else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    # Not `--dist loadgroup`: pytest 9.2 no longer reads the node ids into which xdist 3.8 writes its groups.
    return EndToEndTogether(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sqlite", action="store_true", help="leave out the tests that need PostgreSQL")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The longest first: the others fill the time of the second worker.
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/e2e/", "tests/fuzz/")))
    if config.getoption("--sqlite"):
        config.hook.pytest_deselected(items=[each for each in items if _needs_postgres(each)])
        items[:] = [each for each in items if not _needs_postgres(each)]


def _needs_postgres(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return "postgres" in parameters.values() or not _ON_POSTGRES.isdisjoint(item.fixturenames)  # type: ignore[attr-defined]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`127.0.0.1:port` of a PostgreSQL cluster of this run's own; the superuser is `postgres`."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    # It refuses to run as root, and its own user must be able to walk to its data.
    home = Path("/tmp") / f"deployerp-postgres-{uuid.uuid4().hex}"
    home.mkdir(mode=0o755)
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(home, user="postgres")
        as_user = ["setpriv", f"--reuid={pwd.getpwnam('postgres').pw_uid}", "--clear-groups"]
    data, port = home / "data", free_port()
    initdb = [str(programs / "initdb"), "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync"]
    subprocess.run([*as_user, *initdb, str(data)], check=True, capture_output=True)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    control = [*as_user, str(programs / "pg_ctl"), "--pgdata", str(data), "--wait"]
    subprocess.run(
        [*control, "--log", str(home / "log"), "-o", options, "start"], check=True, stdout=subprocess.DEVNULL
    )
    yield f"127.0.0.1:{port}"
    subprocess.run([*control, "--mode=immediate", "stop"], check=True, capture_output=True)
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with all migrations run, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    command.upgrade(configuration(f"sqlite+aiosqlite:///{path}"), "head")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> str:
    """The name of a database with all migrations run, to be copied."""
    asyncio.run(run_on_postgres(postgres_server, "CREATE DATABASE migrated"))
    command.upgrade(configuration(f"postgresql+asyncpg://postgres@{postgres_server}/migrated"), "head")
    return "migrated"


async def run_on_postgres(server: str, statement: str) -> None:
    engine = open_database(f"postgresql+asyncpg://postgres@{server}/postgres")
    async with engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.execute(text(statement))
    await engine.dispose()


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    copied = shutil.copy(migrated_sqlite, tmp_path / "deployerp.db")
    return f"sqlite+aiosqlite:///{copied}"


@pytest.fixture
async def postgres_url(postgres_server: str, migrated_postgres: str) -> AsyncIterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    await run_on_postgres(postgres_server, f"CREATE DATABASE {name} TEMPLATE {migrated_postgres}")
    yield f"postgresql+asyncpg://postgres@{postgres_server}/{name}"
    await run_on_postgres(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database: every test that asks for it runs on both kinds."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
async def temporal_address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A real Temporal development server with our search attributes."""
    ports = control_plane.Ports.free()
    settings = control_plane.embedded_settings(tmp_path_factory.mktemp("temporal"), ports)
    async with control_plane.services(settings, ports):
        yield settings.temporal_address


@pytest.fixture
def settings(database_url: str, temporal_address: str, tmp_path: Path) -> Settings:
    return settings_for(database_url, temporal_address, tmp_path)


def settings_for(database_url: str, temporal_address: str, home: Path) -> Settings:
    """Settings of a control plane that shares Temporal with others and nothing else."""
    return Settings.model_validate(
        {
            "home": home,
            "database_url": database_url,
            "temporal_address": temporal_address,
            "temporal_task_queue": f"test-{uuid.uuid4().hex}",
            "encryption_keys": [new_encryption_key()],
            "sweep_seconds": 1,
            "allowed_networks": ["127.0.0.0/8"],
            # All tests come from one address.
            "address_requests_per_minute": 1_000_000,
        }
    )


ERRORS = list(tree())


@dataclass
class Client:
    """The API as one organization's key sees it."""

    http: httpx.AsyncClient
    organization_id: uuid.UUID
    token: str

    async def request(
        self, method: str, path: str, json: object = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """The answer as it comes."""
        bearer = {"Authorization": f"Bearer {self.token}"}
        return await self.http.request(method, path, json=json, headers=bearer | (headers or {}))

    async def call(self, method: str, path: str, json: object = None, status: int | None = None) -> dict:
        """The parsed body; `status` is what the answer must have, by default any 2xx."""
        answer = await self.request(method, path, json)
        expected = answer.is_success if status is None else answer.status_code == status
        assert expected, f"{method} {path} answers {answer.status_code}: {answer.text}"
        return answer.json() if answer.content else {}

    async def data(self, method: str, path: str, json: object = None, status: int | None = None) -> dict:
        return (await self.call(method, path, json, status))["data"]

    async def error(self, method: str, path: str, json: object = None, *, code: str) -> dict:
        """The error of an answer that must have this code and the envelope and status that go with it."""
        answer = await self.request(method, path, json)
        body = answer.json()
        assert body.keys() == {"success", "error", "meta"}, body
        assert body["success"] is False
        assert body["error"].keys() == {"code", "message", "details"}
        assert body["error"]["code"] == code, f"{method} {path}: {body}"
        assert answer.status_code in {error.status for error in ERRORS if error.code == code}
        assert answer.headers["X-Request-Id"] == body["meta"]["request_id"]
        return body["error"]


@asynccontextmanager
async def open_api(
    settings: Settings, *, settled: bool = True, clouds: FakeClouds | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """The API in this process, with the query service of a worker that knows these clouds.

    An answer comes when what is done beside it is done, unless not `settled`.
    """
    # An application builds its routes with its first request, which takes longer than most tests.
    app = _IDLE_APPS.pop() if _IDLE_APPS else create_app(Settings.model_construct())
    vault = Vault(settings.encryption_keys)
    async with (
        serve_queries(Answers(clouds or FakeClouds(), vault), vault, "127.0.0.1", 0) as port,
        open_context(
            settings.model_copy(update={"worker_url": f"http://127.0.0.1:{port}"})
        ) as app.state.context,
    ):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)

        async def settle(answer: httpx.Response) -> None:
            if settled and answer.status_code == 202:
                await app.state.context.background.drain()

        hooks = {"response": [settle]}
        async with httpx.AsyncClient(transport=transport, base_url="http://api", event_hooks=hooks) as http:
            yield http
    _IDLE_APPS.append(app)


_IDLE_APPS: list[FastAPI] = []


async def new_client(
    http: httpx.AsyncClient,
    settings: Settings,
    level: Level = "admin",
    slug: str | None = None,
    plan: Plan = "enterprise",
) -> Client:
    """A key of a new organization."""
    database = open_database(settings.database_url)
    slug = slug or f"org-{uuid.uuid4().hex[:12]}"
    async with session_factory(database)() as session, session.begin():
        organization = Organization(name=slug, slug=slug, plan=plan)
        session.add(organization)
        await session.flush()
        key, token = new_api_key(organization.id, "test", level)
        session.add(key)
    await database.dispose()
    return Client(http, organization.id, token)


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with open_api(settings) as opened:
        yield opened


@pytest.fixture
async def client(http: httpx.AsyncClient, settings: Settings) -> Client:
    """An admin of an organization of its own."""
    return await new_client(http, settings)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_database(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(database: AsyncEngine) -> SessionFactory:
    return session_factory(database)


@pytest.fixture
async def records(settings: Settings, sessions: SessionFactory) -> Records:
    return Records(sessions, await Temporal.open(settings))


@dataclass
class Fleet:
    """Resources that are asked for as a client does, and settled as a workflow does, without any machine."""

    client: Client
    records: Records

    async def provider(self, name: str = "here") -> dict:
        return await self.client.data("POST", "/v1/providers", {"name": name, "kind": "docker"}, 201)

    async def begin_server(self, name: str = "one", provider_id: str | None = None) -> dict:
        """A server whose operation is pending."""
        provider_id = provider_id or (await self.provider(f"for {name}"))["id"]
        body = {"name": name, "providerId": provider_id, "size": "small"}
        return await self.client.data("POST", "/v1/servers", body, 202)

    async def server(self, name: str = "one", provider_id: str | None = None) -> dict:
        """A running server."""
        return await self.settled(await self.begin_server(name, provider_id))

    async def begin_instance(self, server_id: str, slug: str | None = None, **more: object) -> dict:
        """An instance whose operation is pending."""
        slug = slug or f"i-{uuid.uuid4().hex[:12]}"
        body = {"name": slug, "slug": slug, "serverId": server_id, "odooVersion": "19.0", **more}
        return await self.client.data("POST", "/v1/instances", body, 202)

    async def instance(self, server_id: str, slug: str | None = None, **more: object) -> dict:
        """A running instance."""
        return await self.settled(await self.begin_instance(server_id, slug, **more))

    async def settled(self, begun: dict, outcome: Outcome = "succeeded", **reason: str) -> dict:
        """The resource of a 202, after its operation has come to its end."""
        order = await self.end(begun, outcome, **reason)
        return await self.client.data("GET", f"/v1/{order.resource_type}s/{order.resource_id}")

    async def end(self, begun: dict, outcome: Outcome = "succeeded", **reason: str) -> OperationOrder:
        """Brings the operation of a 202 to its end."""
        order = await self.order(begun["operation"]["id"])
        await self.records.claim_operation(order)
        await self.records.end_operation(OperationEnd(order, outcome, **reason))
        return order

    async def order(self, operation_id: str) -> OperationOrder:
        async with self.records._sessions() as session:
            operation = await session.get(Operation, uuid.UUID(operation_id))
        assert operation is not None
        return operation.order


@pytest.fixture
def fleet(client: Client, records: Records) -> Fleet:
    return Fleet(client, records)
