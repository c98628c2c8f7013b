"""What the control plane has written down, read from its database and from Temporal."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel, col

from deployerp.core.secrets import Vault
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.verification import Verified, verify
from deployerp.domain.events.event import Event
from deployerp.domain.installations import installation_id
from deployerp.domain.instances import Instance
from deployerp.domain.operations.lifecycles import OPEN_OPERATION_STATES
from deployerp.domain.operations.operation import Operation, OperationHold, OperationStep
from deployerp.domain.organizations import Organization
from deployerp.domain.servers import Server
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.drivers.temporal import Temporal

# They never end.
_STANDING_WORKFLOWS = ("KeepWorking", "DeliverWebhooks")
_TOLD = (Event, Operation, OperationStep, WebhookDelivery)
# Longer than any of the control plane's transactions takes that is not stuck.
_STUCK = "5 seconds"
_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
_STUCK_TRANSACTIONS = f"""
    SELECT count(*) FROM pg_stat_activity
    WHERE state LIKE 'idle in transaction%' AND state_change < now() - interval '{_STUCK}'
"""
_SEALED = {
    Server: ("sealed_host_private_key", "sealed_login_private_key"),
    Instance: ("sealed_database_password", "sealed_master_password", "sealed_admin_password"),
}


@dataclass(frozen=True)
class Records:
    servers: tuple[Server, ...] = ()
    instances: tuple[Instance, ...] = ()
    operations: tuple[Operation, ...] = ()
    running_steps: tuple[OperationStep, ...] = ()
    events: tuple[Event, ...] = ()
    event_sequence: int = 0
    """The number that the organization gives as that of its latest event."""
    undelivered: int = 0
    advisory_locks: int = 0
    stuck_transactions: int = 0
    stray_holds: int = 0
    """Holds whose operation is closed."""
    open_workflows: dict[str, str] = field(default_factory=dict)
    """The type of each workflow that is open, by id, those excepted that never end."""
    audit_log: str = ""
    """What is wrong with the audit log, if anything."""

    @property
    def open_operations(self) -> list[Operation]:
        return [each for each in self.operations if each.state in OPEN_OPERATION_STATES]

    def last_operation(self, resource_id: UUID) -> Operation | None:
        of_it = [each for each in self.operations if each.resource_id == resource_id]
        return max(of_it, key=lambda each: (each.created_at, each.id), default=None)


async def read(sessions: SessionFactory, temporal: Temporal) -> Records:
    """All of the one organization that there is."""
    async with sessions() as session:
        organization = (await session.scalars(select(Organization))).one()
        pending = select(func.count()).where(col(WebhookDelivery.state) != "succeeded")
        steps = select(OperationStep).where(col(OperationStep.state) == "running")
        stray = (
            select(func.count())
            .select_from(OperationHold)
            .join(Operation, col(Operation.id) == col(OperationHold.operation_id))
            .where(col(Operation.state).not_in(OPEN_OPERATION_STATES))
        )
        verified = await verify(sessions, organization.id)
        return Records(
            servers=await _all(session, Server),
            instances=await _all(session, Instance),
            operations=await _all(session, Operation),
            running_steps=tuple(await session.scalars(steps)),
            events=tuple(await session.scalars(select(Event).order_by(col(Event.sequence)))),
            event_sequence=organization.event_sequence,
            undelivered=await session.scalar(pending) or 0,
            advisory_locks=await session.scalar(text(_LOCKS)) or 0,
            stuck_transactions=await session.scalar(text(_STUCK_TRANSACTIONS)) or 0,
            stray_holds=await session.scalar(stray) or 0,
            open_workflows=await _open_workflows(temporal),
            audit_log="" if isinstance(verified, Verified) else f"{verified.sequence}: {verified.reason}",
        )


async def installation_of(sessions: SessionFactory) -> str:
    async with sessions() as session:
        return str(await installation_id(session))


async def _all(session: AsyncSession, model: type[Any]) -> tuple[Any, ...]:
    return tuple(await session.scalars(select(model).order_by(model.created_at, model.id)))


async def _open_workflows(temporal: Temporal) -> dict[str, str]:
    running = temporal.client.list_workflows("ExecutionStatus = 'Running'")
    return {
        each.id: each.workflow_type async for each in running if each.workflow_type not in _STANDING_WORKFLOWS
    }


async def texts(sessions: SessionFactory) -> dict[str, str]:
    """What the tables hold that people and receivers are shown, by table."""
    async with sessions() as session:
        return {model.__name__: "\n".join(await _rows(session, model)) for model in _TOLD}


async def _rows(session: AsyncSession, model: type[SQLModel]) -> Iterable[str]:
    return [row.model_dump_json() for row in await session.scalars(select(model))]


async def secrets(sessions: SessionFactory, vault: Vault) -> dict[str, str]:
    """What the rows seal, by what it is; of keys a line from the middle, for the first are alike in all."""
    found = {}
    async with sessions() as session:
        for model, names in _SEALED.items():
            for row in await _all(session, model):
                for name in names:
                    if sealed := getattr(row, name):
                        lines = vault.open(sealed).splitlines()
                        found[f"{name} of {row.id}"] = lines[min(3, len(lines) - 1)]
    return found
