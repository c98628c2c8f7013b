"""The fleet that the API is measured with: many organizations, one of them with a tenth of all instances."""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg

from deployerp.domain.api_keys import new_api_key
from deployerp.domain.database import open_database, session_factory
from deployerp.domain.secrets import Vault
from deployerp.domain.settings import Settings

_SEED = Path(__file__).with_name("api_fleet.sql")
# So many of an organization's instances are asked for, one by one or by name.
_SAMPLE = 1000
# Limited as a professional plan is, by an agreement that no bench can spend.
_LIMIT = "UPDATE organizations SET plan = 'professional', requests_per_minute = $2, requests_per_hour = $3"
_PER_MINUTE, _PER_HOUR = 10_000_000, 600_000_000


@dataclass(frozen=True)
class Size:
    """How many of each."""

    organizations: int
    instances: int
    big_servers: int

    @property
    def big_instances(self) -> int:
        return self.instances // 10


FULL = Size(organizations=1000, instances=1_000_000, big_servers=100)
# As many organizations and servers: fewer, and PostgreSQL would plan filters in another way.
QUICK = Size(organizations=1000, instances=200_000, big_servers=100)


@dataclass(frozen=True)
class Tenant:
    """An organization as it is asked for: by its key, or, without one, by its id."""

    organization_id: UUID
    token: str
    server_id: UUID
    instance_ids: list[UUID]
    # Each is in the name of one of its instances.
    words: list[str]


@dataclass(frozen=True)
class Fleet:
    """`limited` is like `small` but for its plan; `creators` are small ones that get more instances."""

    big: Tenant
    small: Tenant
    limited: Tenant
    creators: list[Tenant]


async def seed(dsn: str, settings: Settings, size: Size, creators: int) -> Fleet:
    """Fills a migrated database."""
    connection = await asyncpg.connect(dsn)
    numbers = {
        "organizations": size.organizations,
        "instances": size.instances,
        "big_servers": size.big_servers,
        "sealed": Vault(settings.encryption_keys).seal_mapping({}),
    }
    for name, value in numbers.items():
        await connection.execute("SELECT set_config($1, $2, false)", f"bench.{name}", str(value))
    await connection.execute(_SEED.read_text())
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    big, small, limited, *others = [
        await _tenant(connection, settings, f"org-{number}") for number in range(3 + creators)
    ]
    await connection.execute(f"{_LIMIT} WHERE id = $1", limited.organization_id, _PER_MINUTE, _PER_HOUR)
    await connection.close()
    return Fleet(big, small, limited, others)


async def _tenant(connection: asyncpg.Connection, settings: Settings, slug: str) -> Tenant:
    organization_id = await connection.fetchval("SELECT id FROM organizations WHERE slug = $1", slug)
    server_id = await connection.fetchval(
        "SELECT id FROM servers WHERE organization_id = $1 ORDER BY name LIMIT 1", organization_id
    )
    rows = await connection.fetch(
        "SELECT id, slug FROM instances WHERE organization_id = $1 AND deleted_at IS NULL"
        " ORDER BY md5(slug) LIMIT $2",
        organization_id,
        _SAMPLE,
    )
    return Tenant(
        organization_id,
        await _new_token(settings, organization_id),
        server_id,
        [row["id"] for row in rows],
        [row["slug"].rpartition("-")[2] for row in rows],
    )


async def _new_token(settings: Settings, organization_id: UUID) -> str:
    key, token = new_api_key(organization_id, "bench", "admin")
    database = open_database(settings.database_url)
    async with session_factory(database)() as session, session.begin():
        session.add(key)
    await database.dispose()
    return token
