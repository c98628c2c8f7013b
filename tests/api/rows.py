"""Rows of every resource, written straight into the database: as many as a test wants, at known times.

Their ids tell nothing of their age, and several share a time: what is in order in spite of it is so by rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4, uuid5

from sqlalchemy import delete, select, update
from sqlmodel import SQLModel, col

from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.api_keys import ApiKey, new_api_key
from deployerp.domain.audit.log import GENESIS, AuditEntry
from deployerp.domain.events.event import Event
from deployerp.domain.instances import Instance
from deployerp.domain.operations.operation import Operation
from deployerp.domain.providers import Provider
from deployerp.domain.servers import Server
from deployerp.domain.users import Member, Person, User
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint

Values = dict[str, Any]
Parents = Mapping[type[SQLModel], Sequence[UUID]]
START = datetime(2026, 1, 1, tzinfo=UTC)
# So many rows, one after the other, are of the same time.
AT_ONCE = 4


@dataclass(frozen=True)
class Kind:
    """How rows are made: what only they have, of the nth, and the rows that there must be before."""

    values: Callable[[int, Parents], Values]
    parents: Mapping[type[SQLModel], int] = field(default_factory=dict)
    # What `q` looks into.
    search: tuple[str, ...] = ()


def time_of(n: int) -> datetime:
    return START + timedelta(seconds=n // AT_ONCE)


def word(n: int) -> str:
    """Sorts like the number, in whatever language the database sorts."""
    return "row" + "".join(chr(ord("a") + n // place % 26) for place in (676, 26, 1))


def _some(n: int) -> UUID:
    return uuid5(UUID(int=0), str(n))


def _of(n: int, *values: Any) -> Any:
    return values[n % len(values)]


KINDS: dict[type, Kind] = {
    Provider: Kind(
        lambda n, _: {"name": word(n), "kind": _of(n, "docker", "aws"), "sealed_credentials": "sealed"},
        search=("name",),
    ),
    Server: Kind(
        lambda n, parents: {
            "name": word(n),
            "provider_id": _of(n, *parents[Provider]),
            "size": "small",
            "status": _of(n, "running", "stopped", "failed"),
            "address": f"10.0.0.{n}",
        },
        {Provider: 2},
        search=("name", "address"),
    ),
    Instance: Kind(
        lambda n, parents: {
            "name": word(n // 2),
            "slug": word(n),
            "hostname": f"{word(n)}-{uuid4().hex[:12]}.example.com",
            "server_id": _of(n, *parents[Server]),
            "odoo_version": _of(n, "19.0", "18.0"),
            "odoo_edition": "community",
            "environment_type": _of(n, "production", "staging", "development"),
            "status": _of(n, "running", "running", "stopped", "failed"),
            "deployed_at": time_of(n),
            "sealed_env_vars": "sealed",
            "sealed_database_password": "sealed",
            "sealed_master_password": "sealed",
        },
        {Server: 2},
        search=("name", "slug", "hostname"),
    ),
    Operation: Kind(
        lambda n, _: {
            "resource_type": _of(n, "server", "instance"),
            "resource_id": _some(n // 2),
            "action": _of(n, "restart", "restart", "stop"),
            "workflow_id": f"instance-restart.{word(n)}.{n}",
            "resource_name": word(n),
            "resource_slug": word(n),
            "state": _of(n, "succeeded", "failed", "cancelled"),
        }
    ),
    WebhookEndpoint: Kind(
        lambda n, _: {
            "url": f"https://{word(n)}.example.com/",
            "description": word(n),
            "types": ["*"],
            "format": _of(n, "raw", "raw", "slack"),
            "sealed_secret": "sealed",
            "enabled": n % 3 > 0,
        },
        search=("url", "description"),
    ),
    Event: Kind(
        lambda n, _: {
            "sequence": n + 1,
            "type": _of(n, "instance.deployed", "server.created"),
            "resource_type": _of(n, "instance", "server"),
            "resource_id": _some(n // 2),
            "data": {},
        }
    ),
    WebhookDelivery: Kind(
        lambda n, parents: {
            "endpoint_id": _of(n, *parents[WebhookEndpoint]),
            "event_id": _of(n // 2, *parents[Event]),
            "event_type": _of(n, "instance.deployed", "server.created"),
            "state": _of(n, "pending", "succeeded", "failed"),
        },
        {WebhookEndpoint: 2, Event: 20},
    ),
    AuditEntry: Kind(
        lambda n, _: {
            "sequence": n + 1,
            "actor_type": "user",
            "actor_id": _some(n % 2),
            "action": _of(n, "create_server", "create_server", "create_instance"),
            "resource_type": _of(n, "server", "instance"),
            "resource_id": _some(n // 2),
            "operation_id": _some(n // 3),
            "address": "127.0.0.1",
            "request_id": f"request-{n // 2}",
            "before": None,
            "after": {"name": word(n)},
            "previous_hash": GENESIS,
            "hash": GENESIS,
        }
    ),
    ApiKey: Kind(
        lambda n, _: {
            "name": word(n),
            "level": _of(n, "read", "write"),
            "key_id": new_api_key(_some(n), "", "read")[0].key_id,
            "token_digest": "digest",
        },
        search=("name", "key_id"),
    ),
    Person: Kind(
        lambda n, _: {
            "email": f"{word(n)}-{uuid4().hex[:12]}@example.com",
            "email_verified_at": time_of(n),
            "name": word(n // 2),
            "role": _of(n, "owner", "viewer"),
        },
        search=("email", "name"),
    ),
}
# What each list is made of.
RESOURCES: dict[str, type] = {
    "/v1/api-keys": ApiKey,
    "/v1/audit-log": AuditEntry,
    "/v1/events": Event,
    "/v1/instances": Instance,
    "/v1/operations": Operation,
    "/v1/providers": Provider,
    "/v1/servers": Server,
    "/v1/users": Person,
    "/v1/webhook-deliveries": WebhookDelivery,
    "/v1/webhook-endpoints": WebhookEndpoint,
}


@dataclass(frozen=True)
class Planted:
    """The rows of one organization."""

    sessions: SessionFactory
    organization_id: UUID
    # What others belong to; made when it is first needed.
    parents: dict[type[SQLModel], list[UUID]] = field(default_factory=dict)

    async def add(
        self,
        model: type,
        count: int = 1,
        *,
        first: int = 0,
        make: Callable[[int], Values] = lambda _: {},
        **values: Any,
    ) -> list[UUID]:
        """Ids of so many new rows, from the `first`: `values` are of each, `make` gives the nth its own."""
        kind = KINDS[model]
        for each, number in kind.parents.items():
            if each not in self.parents:
                self.parents[each] = await self.add(each, number)
        numbers = range(first, first + count)
        rows = [self._common(n) | kind.values(n, self.parents) | values | make(n) for n in numbers]
        async with self.sessions() as session, session.begin():
            for table in _records(model, rows):
                session.add_all(table)
                await session.flush()
        return [row["id"] for row in rows]

    def _common(self, n: int) -> Values:
        return {"id": uuid4(), "organization_id": self.organization_id, "created_at": time_of(n)}

    async def all(self, model: Any) -> list[Values]:
        """What there is, of its own and in no order."""
        table = model.__table__
        own = [table.c.organization_id == self.organization_id]
        if "deleted_at" in table.c:
            own.append(table.c.deleted_at.is_(None))
        async with self.sessions() as session:
            return [dict(row) for row in (await session.execute(select(table).where(*own))).mappings()]

    async def take(self, model: Any, id: UUID) -> None:
        """Makes a row go away, as it would."""
        if model is Person:
            statement: Any = delete(Member).where(col(Member.user_id) == id)
        elif hasattr(model, "deleted_at"):
            statement = update(model).where(model.id == id).values(deleted_at=utc_now())
        else:
            statement = delete(model).where(model.id == id)
        async with self.sessions() as session, session.begin():
            await session.execute(statement)


def _records(model: type, rows: Sequence[Values]) -> list[list[Any]]:
    """Table by table, in the order in which they need each other."""
    if model is not Person:
        return [[model(**row) for row in rows]]
    own = ("id", "email", "email_verified_at", "name")
    users = [User(**{name: row[name] for name in own}) for row in rows]
    members = [
        Member(user_id=row["id"], **{name: row[name] for name in ("organization_id", "role", "created_at")})
        for row in rows
    ]
    return [users, members]
