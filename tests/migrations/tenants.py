"""Two of everything: organizations with a row in every table, for tests of what keeps them apart."""

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from deployerp.database.base import new_id, utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.api_keys import new_api_key
from deployerp.domain.audit.log import AuditRecord, append
from deployerp.domain.events.event import Event
from deployerp.domain.idempotency import IdempotencyRecord
from deployerp.domain.instances import Instance
from deployerp.domain.operations.operation import Operation, OperationHold, OperationStep
from deployerp.domain.organizations import Organization
from deployerp.domain.providers import Provider
from deployerp.domain.rate_windows import RateWindow
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.releases import Release
from deployerp.domain.servers import Server
from deployerp.domain.set_password_tokens import SetPasswordToken
from deployerp.domain.tables import metadata
from deployerp.domain.users import Identity, Member, User
from deployerp.domain.webhooks.deliveries import WebhookAttempt, WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint

# What no request of a tenant has any business with.
CLOSED = {"identities", "installations", "rate_windows", "refresh_tokens", "set_password_tokens"}
VISIBLE = sorted(set(metadata.tables) - CLOSED)


@dataclass
class Tenant:
    """An organization with a row in every table."""

    organization: Organization
    records: list[SQLModel] = field(default_factory=list)

    @property
    def id(self) -> UUID:
        return self.organization.id

    def of(self, table: str) -> Any:
        return next(record for record in self.records if record.__tablename__ == table)


def records_of(organization: Organization) -> list[SQLModel]:
    """In the order in which they can be written; the audit log writes its own."""
    own = {"organization_id": organization.id}
    name = organization.slug
    user = User(email=f"{name}@example.com", email_verified_at=utc_now(), name=name)
    provider = Provider(name=name, kind="docker", sealed_credentials="sealed", **own)
    server = Server(provider_id=provider.id, name=name, size="small", **own)
    instance = Instance(
        server_id=server.id,
        name=name,
        slug=name,
        odoo_version="19.0",
        odoo_edition="community",
        environment_type="production",
        hostname=name,
        sealed_env_vars="sealed",
        sealed_database_password="sealed",
        sealed_master_password="sealed",
        **own,
    )
    operation = Operation(
        resource_type="server",
        resource_id=server.id,
        action="create",
        workflow_id=f"server-create.{name}",
        resource_name=name,
        resource_slug=name,
        **own,
    )
    event = Event(
        sequence=1, type="server.created", resource_type="server", resource_id=server.id, data={}, **own
    )
    endpoint = WebhookEndpoint(url="https://example.com", types=["*"], sealed_secret="sealed", **own)
    delivery = WebhookDelivery(endpoint_id=endpoint.id, event_id=event.id, event_type=event.type, **own)
    return [
        organization,
        user,
        Member(user_id=user.id, role="owner", **own),
        Identity(user_id=user.id, issuer="https://issuer.example", subject=name),
        RefreshToken(family_id=new_id(), user_id=user.id, token_digest=name, expires_at=utc_now(), **own),
        SetPasswordToken(user_id=user.id, token_digest=name, expires_at=utc_now(), **own),
        RateWindow(subject=name, seconds=60, started_at=utc_now(), spent=1),
        new_api_key(organization.id, name, "admin")[0],
        provider,
        server,
        instance,
        Release(instance_id=instance.id, **own),
        operation,
        OperationHold(
            operation_id=operation.id,
            resource_type="server",
            resource_id=server.id,
            status_before="pending",
            **own,
        ),
        OperationStep(operation_id=operation.id, position=1, name="first", started_at=utc_now()),
        event,
        endpoint,
        delivery,
        WebhookAttempt(delivery_id=delivery.id, number=1),
        IdempotencyRecord(
            key=name, fingerprint=name, status=200, sealed_answer="sealed", expires_at=utc_now(), **own
        ),
    ]


def deed() -> AuditRecord:
    return AuditRecord(
        actor_type="system", actor_id=None, action="test", resource_type="server", request_id="r"
    )


async def settle(sessions: SessionFactory) -> Tenant:
    organization = Organization(name="acme", slug=f"acme-{uuid4().hex}")
    tenant = Tenant(organization, records_of(organization))
    async with sessions() as session, session.begin():
        for record in tenant.records:
            session.add(record)
            await session.flush()
        await append(session, organization.id, deed())
    return tenant


async def refused(session: AsyncSession, statement: Any, words: str) -> None:
    with pytest.raises(DBAPIError, match=words):
        await session.execute(statement)


async def rows(session: AsyncSession, name: str, condition: str = "true") -> list[Any]:
    found = await session.execute(text(f"SELECT to_jsonb(t) FROM {name} t WHERE {condition}"))
    return sorted(found.scalars(), key=json.dumps)
