"""The sweep: the rows of operations and deliveries are the outbox, and this empties it."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy import exists, select
from sqlmodel import col
from temporalio import activity

from deployerp.activities.expired import forget_expired
from deployerp.activities.records import Records
from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.lifecycles import OPEN_OPERATION_STATES
from deployerp.domain.messages import OperationEnd, OperationOrder, SweepReport
from deployerp.domain.operations import Operation
from deployerp.domain.settings import Settings
from deployerp.domain.webhook_deliveries import WebhookDelivery
from deployerp.domain.webhook_endpoints import WebhookEndpoint
from deployerp.drivers.temporal import Temporal

log = structlog.get_logger()
# Younger ones are still in the hands of whoever wrote them.
_GRACE = timedelta(seconds=2)
# A delivery that is overdue by more may have been forgotten.
_OVERDUE = timedelta(seconds=5)
# How many rows of a table one sweep looks at; the next goes on where it stopped.
AT_ONCE = 500


class OperationActivities:
    """Puts right what a crash between two systems has left."""

    def __init__(
        self,
        sessions: SessionFactory,
        records: Records,
        temporal: Temporal,
        settings: Settings,
        at_once: int = AT_ONCE,
    ) -> None:
        self._sessions = sessions
        self._records = records
        self._temporal = temporal
        self._keep_events = timedelta(days=settings.event_retention_days)
        self._at_once = at_once
        self._last_operation: UUID | None = None
        self._last_endpoint: UUID | None = None

    @activity.defn
    async def sweep(self) -> SweepReport:
        """Compares open operations with Temporal and makes them agree; wakes overdue endpoints; forgets."""
        done: Counter[str] = Counter()
        for operation in await self._next_operations():
            done[await self._sweep_operation(operation)] += 1
        del done[""]
        woken = await self._wake_overdue()
        await forget_expired(self._sessions, self._keep_events)
        report = SweepReport(**done, woken_endpoints=woken)
        if report != SweepReport():
            log.info("swept", **done, woken_endpoints=woken)
        return report

    async def _sweep_operation(self, operation: Operation) -> str:
        order = operation.order
        state = await self._temporal.run_state(order.workflow_id)
        if state == "absent" and operation.started_at is None:
            await self._temporal.start_operation(order)
            return "started_operations"
        if state == "running":
            if operation.state != "cancelling":
                return ""
            # The request may have been lost on its way; a second one changes nothing.
            await self._temporal.cancel(order.workflow_id)
            return "cancelled_operations"
        if not await self._is_still_open(operation):
            return ""
        await self._close(order)
        return "closed_operations"

    async def _wake_overdue(self) -> int:
        """Whatever their rows say: what was to wake them may be lost, and their workflows with it."""
        endpoints = await self._next_overdue()
        await self._temporal.wake_endpoints([endpoint.order for endpoint in endpoints])
        return len(endpoints)

    async def _next_operations(self) -> Sequence[Operation]:
        """The open ones after those of the last sweep, round and round, so that each gets its turn."""
        query = (
            select(Operation)
            .where(
                col(Operation.state).in_(OPEN_OPERATION_STATES),
                col(Operation.updated_at) < utc_now() - _GRACE,
            )
            .order_by(col(Operation.id))
            .limit(self._at_once)
        )
        if self._last_operation:
            query = query.where(col(Operation.id) > self._last_operation)
        async with self._sessions() as session:
            found = (await session.scalars(query)).all()
        self._last_operation = found[-1].id if len(found) == self._at_once else None
        return found

    async def _next_overdue(self) -> Sequence[WebhookEndpoint]:
        overdue = exists().where(
            col(WebhookDelivery.endpoint_id) == col(WebhookEndpoint.id),
            col(WebhookDelivery.state) == "pending",
            col(WebhookDelivery.next_attempt_at) < utc_now() - _OVERDUE,
        )
        query = select(WebhookEndpoint).where(overdue).order_by(col(WebhookEndpoint.id)).limit(self._at_once)
        if self._last_endpoint:
            query = query.where(col(WebhookEndpoint.id) > self._last_endpoint)
        async with self._sessions() as session:
            found = (await session.scalars(query)).all()
        self._last_endpoint = found[-1].id if len(found) == self._at_once else None
        return found

    async def _is_still_open(self, operation: Operation) -> bool:
        """Read after Temporal was asked: a workflow that ended in between has closed its own row."""
        async with self._sessions() as session:
            state = await session.scalar(
                select(col(Operation.state)).where(col(Operation.id) == operation.id)
            )
        return state in OPEN_OPERATION_STATES

    async def _close(self, order: OperationOrder) -> None:
        await self._records.end_operation(
            OperationEnd(
                order,
                "failed",
                "workflow_ended",
                "The workflow was ended from outside before it could finish or undo its steps:"
                " retry the operation, or delete the resource.",
            )
        )
