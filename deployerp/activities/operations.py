"""The sweep: the operation and delivery rows are the outbox, and this empties it."""

from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import col
from temporalio import activity

from deployerp.activities.records import Records
from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.lifecycles import OPEN_OPERATION_STATES
from deployerp.domain.messages import DeliveryOrder, OperationEnd, OperationOrder, SweepReport
from deployerp.domain.operations import Operation
from deployerp.domain.webhook_deliveries import WebhookDelivery
from deployerp.drivers.temporal import Temporal

log = structlog.get_logger()
# Younger ones are still in the hands of whoever wrote them.
_GRACE = timedelta(seconds=2)
_AT_ONCE = 500


class OperationActivities:
    """Puts right what a crash between two systems has left."""

    def __init__(self, sessions: SessionFactory, records: Records, temporal: Temporal) -> None:
        self._sessions = sessions
        self._records = records
        self._temporal = temporal

    @activity.defn
    async def sweep(self) -> SweepReport:
        """Compares open operations and deliveries with Temporal and makes them agree."""
        started = closed = 0
        for operation in await self._open_operations():
            state = await self._temporal.run_state(operation.order.workflow_id)
            if state == "absent" and operation.started_at is None:
                await self._temporal.start_operation(operation.order)
                started += 1
            elif state != "running" and await self._is_still_open(operation.id):
                await self._close(operation.order)
                closed += 1
        deliveries = await self._pending_deliveries()
        for order in deliveries:
            await self._temporal.start_delivery(order)
        if started or closed:
            log.info("swept", started=started, closed=closed, deliveries=len(deliveries))
        return SweepReport(started, closed, len(deliveries))

    async def _open_operations(self) -> list[Operation]:
        async with self._sessions() as session:
            found = await session.scalars(
                select(Operation)
                .where(
                    col(Operation.state).in_(OPEN_OPERATION_STATES),
                    col(Operation.updated_at) < utc_now() - _GRACE,
                )
                .order_by(col(Operation.created_at))
                .limit(_AT_ONCE)
            )
            return list(found)

    async def _is_still_open(self, operation_id: UUID) -> bool:
        """Read after Temporal was asked: a workflow that ended in between has closed its own row."""
        async with self._sessions() as session:
            state = await session.scalar(
                select(col(Operation.state)).where(col(Operation.id) == operation_id)
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

    async def _pending_deliveries(self) -> list[DeliveryOrder]:
        async with self._sessions() as session:
            found = await session.scalars(
                select(WebhookDelivery)
                .where(
                    col(WebhookDelivery.state) == "pending",
                    col(WebhookDelivery.created_at) < utc_now() - _GRACE,
                    col(WebhookDelivery.attempts) == 0,
                )
                .order_by(col(WebhookDelivery.created_at))
                .limit(_AT_ONCE)
            )
            return [delivery.order for delivery in found]
