"""The fleet that the API is measured with: many organizations, one of them with a tenth of all instances."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg

from deployerp.core.errors import Unavailable
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.sessions import open_database, session_factory
from deployerp.domain.api_keys import new_api_key
from deployerp.domain.plans import PLAN_LIMITS

_SEED = Path(__file__).with_name("api_fleet.sql")
# So many of an organization's instances are asked for, one by one or by name.
_SAMPLE = 1000
# So many organizations of each crowd are asked in a turn, each as often as its minute allows, but for one
# request that tries the case out.
_CROWD_PER_TURN = 70
_REQUESTS_OF_EACH = PLAN_LIMITS["starter"].windows[0][1] - 1


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
class Crowd:
    """The tokens of small organizations that are each asked in one turn only: there, their limit is spent."""

    tokens: list[str]

    def turn(self) -> list[str]:
        """A token for each request of the next turn. Raises `Unavailable` after the last."""
        some, self.tokens[:_CROWD_PER_TURN] = self.tokens[:_CROWD_PER_TURN], []
        if not some:
            raise Unavailable("All organizations of this crowd have been asked: measure fewer rounds.")
        return [token for token in some for _ in range(_REQUESTS_OF_EACH)]


@dataclass(frozen=True)
class Fleet:
    """`creators` are small ones that get more instances; the crowd `limited` has the plan `starter`."""

    big: Tenant
    small: Tenant
    creators: list[Tenant]
    limited: Crowd
    unlimited: Crowd


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
    big, small, *others = [
        await _tenant(connection, settings, f"org-{number}") for number in range(2 + creators)
    ]
    limited, unlimited = await _crowds(connection, settings, 2 + creators, size.organizations)
    await connection.close()
    return Fleet(big, small, others, limited, unlimited)


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
        (await _new_tokens(settings, [organization_id]))[0],
        server_id,
        [row["id"] for row in rows],
        [row["slug"].rpartition("-")[2] for row in rows],
    )


async def _crowds(connection: asyncpg.Connection, settings: Settings, first: int, last: int) -> list[Crowd]:
    """The organizations from the first to before the last: every other one is limited."""
    slugs = [f"org-{number}" for number in range(first, last)]
    crowds = []
    for part, plan in ((slugs[::2], "starter"), (slugs[1::2], "enterprise")):
        rows = await connection.fetch(
            "UPDATE organizations SET plan = $2 WHERE slug = ANY($1) RETURNING id", part, plan
        )
        crowds.append(Crowd(await _new_tokens(settings, [row["id"] for row in rows])))
    return crowds


async def _new_tokens(settings: Settings, organization_ids: Sequence[UUID]) -> list[str]:
    made = [new_api_key(organization_id, "bench", "admin") for organization_id in organization_ids]
    database = open_database(settings.database_url)
    async with session_factory(database)() as session, session.begin():
        session.add_all(key for key, _ in made)
    await database.dispose()
    return [token for _, token in made]
