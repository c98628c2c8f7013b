"""The sweep: the operation and delivery rows are the outbox, and this empties it."""

from collections import Counter
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy import select, update
from sqlmodel import col
from temporalio import activity

from deployerp.activities.expired import forget_expired
from deployerp.activities.records import Records
from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.lifecycles import OPEN_OPERATION_STATES
from deployerp.domain.messages import OperationEnd, OperationOrder, SweepReport
from deployerp.domain.operations import Operation
from deployerp.domain.webhook_deliveries import WebhookDelivery
from deployerp.drivers.temporal import Temporal

log = structlog.get_logger()
# Younger ones are still in the hands of whoever wrote them.
_GRACE = timedelta(seconds=2)
# How many rows of a table one sweep looks at; the next goes on where it stopped.
AT_ONCE = 500
_OPEN_STATES: dict[type[Operation] | type[WebhookDelivery], tuple[str, ...]] = {
    Operation: OPEN_OPERATION_STATES,
    WebhookDelivery: ("pending",),
}
Row = TypeVar("Row", Operation, WebhookDelivery)


class OperationActivities:
    """Puts right what a crash between two systems has left."""

    def __init__(
        self, sessions: SessionFactory, records: Records, temporal: Temporal, at_once: int = AT_ONCE
    ) -> None:
        self._sessions = sessions
        self._records = records
        self._temporal = temporal
        self._at_once = at_once
        self._last_seen: dict[type[Operation] | type[WebhookDelivery], UUID] = {}

    @activity.defn
    async def sweep(self) -> SweepReport:
        """Compares open operations and deliveries with Temporal and makes them agree; forgets what is old."""
        done: Counter[str] = Counter()
        for operation in await self._next_open(Operation):
            done[await self._sweep_operation(operation)] += 1
        for delivery in await self._next_open(WebhookDelivery):
            done[await self._sweep_delivery(delivery)] += 1
        del done[""]
        await forget_expired(self._sessions)
        if done:
            log.info("swept", **done)
        return SweepReport(**done)

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

    async def _sweep_delivery(self, delivery: WebhookDelivery) -> str:
        order = delivery.order
        state = await self._temporal.run_state(order.workflow_id)
        if state == "absent" and delivery.attempts == 0:
            await self._temporal.start_delivery(order)
            return "started_deliveries"
        if state == "running" or not await self._is_still_open(delivery):
            return ""
        # Nobody tries again: to call it pending would be to promise that somebody does.
        async with self._sessions() as session, session.begin():
            await session.execute(
                update(WebhookDelivery)
                .where(col(WebhookDelivery.id) == delivery.id, col(WebhookDelivery.state) == "pending")
                .values(state="failed", finished_at=utc_now())
            )
        return "closed_deliveries"

    async def _next_open(self, model: type[Row]) -> list[Row]:
        """The open rows after those of the last sweep, round and round, so that each gets its turn."""
        query = (
            select(model)
            .where(col(model.state).in_(_OPEN_STATES[model]), col(model.updated_at) < utc_now() - _GRACE)
            .order_by(col(model.id))
            .limit(self._at_once)
        )
        if model in self._last_seen:
            query = query.where(col(model.id) > self._last_seen[model])
        async with self._sessions() as session:
            found = list(await session.scalars(query))
        if len(found) == self._at_once:
            self._last_seen[model] = found[-1].id
        else:
            self._last_seen.pop(model, None)
        return found

    async def _is_still_open(self, row: Operation | WebhookDelivery) -> bool:
        """Read after Temporal was asked: a workflow that ended in between has closed its own row."""
        model = type(row)
        async with self._sessions() as session:
            state = await session.scalar(select(col(model.state)).where(col(model.id) == row.id))
        return state in _OPEN_STATES[model]

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
