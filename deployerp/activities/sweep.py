"""The sweep: the rows of operations and deliveries are the outbox, and this empties it."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy import and_, exists, or_, select
from sqlmodel import col

from deployerp.activities.expired import forget_expired
from deployerp.activities.records import Records
from deployerp.activities.steps.isolation import logged
from deployerp.core.errors import Unavailable
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.operations.lifecycles import OPEN_OPERATION_STATES
from deployerp.domain.operations.messages import OperationEnd, OperationOrder, SweepReport
from deployerp.domain.operations.operation import Operation
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint
from deployerp.drivers.temporal import Temporal

log = structlog.get_logger()
# Younger ones are still in the hands of whoever wrote them.
_GRACE = timedelta(seconds=2)
# A delivery that is overdue by more may have been forgotten.
_OVERDUE = timedelta(seconds=5)
# An endpoint that stays overdue is woken again after so long: somebody may have terminated its workflow. If
# every sweep woke it, the history of one whose receiver is left alone would grow all the time.
_WAKE_AGAIN_SECONDS = 60.0
# Between one wake-up and the next, so that a worker which has just started is not given all of them at once.
_BETWEEN_WAKE_UPS_SECONDS = 0.02
# How many rows of a table one sweep looks at; the next goes on where it stopped.
AT_ONCE = 500


class Sweep:
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
        # Those that are still overdue, and when they were woken.
        self._woken_at: dict[UUID, float] = {}

    async def sweep(self) -> SweepReport:
        """Compares open operations with Temporal and makes them agree; wakes overdue endpoints; forgets."""
        done: Counter[str] = Counter()
        for operation in await self._next_operations():
            done[await self._try_operation(operation)] += 1
        del done[""]
        ended_steps = await self._end_lost_steps()
        woken = await self._wake_overdue()
        await self._forget_expired()
        report = SweepReport(**done, ended_steps=ended_steps, woken_endpoints=woken)
        if report != SweepReport():
            log.info("swept", **asdict(report))
        return report

    async def _try_operation(self, operation: Operation) -> str:
        """One row that cannot be swept is logged, and does not stop those after it."""
        try:
            return await self._sweep_operation(operation)
        except Unavailable:
            # Not the row's fault: the others would fail as well.
            raise
        except Exception:
            log.exception("an operation cannot be swept", operation_id=str(operation.id))
            return ""

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

    async def _end_lost_steps(self) -> int:
        with logged("lost steps cannot be ended"):
            return await self._records.end_lost_steps()
        return 0

    async def _wake_overdue(self) -> int:
        """Whatever their rows say: what was to wake them may be lost, and their workflows with it."""
        before, self._woken_at, woken = self._woken_at, {}, 0
        with logged("endpoints cannot be woken"):
            for endpoint in await self._next_overdue():
                woken_at = before.get(endpoint.id)
                long_ago = woken_at is None or time.monotonic() - woken_at > _WAKE_AGAIN_SECONDS
                if long_ago or endpoint.unseen_change:
                    with logged("an endpoint cannot be woken", endpoint_id=str(endpoint.id)):
                        await self._temporal.wake_endpoint(endpoint.order, changed=endpoint.unseen_change)
                        woken_at, woken = time.monotonic(), woken + 1
                    await asyncio.sleep(_BETWEEN_WAKE_UPS_SECONDS)
                if woken_at is not None:
                    self._woken_at[endpoint.id] = woken_at
        return woken

    async def _forget_expired(self) -> None:
        with logged("what has expired cannot be forgotten"):
            await forget_expired(self._sessions, self._keep_events)

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
        # A change that its workflow has not seen: nobody may have told it.
        unseen = and_(
            col(WebhookEndpoint.unseen_change), col(WebhookEndpoint.updated_at) < utc_now() - _GRACE
        )
        query = (
            select(WebhookEndpoint)
            .where(or_(overdue, unseen))
            .order_by(col(WebhookEndpoint.id))
            .limit(self._at_once)
        )
        if self._last_endpoint:
            query = query.where(col(WebhookEndpoint.id) > self._last_endpoint)
        async with self._sessions() as session:
            found = (await session.scalars(query)).all()
        self._last_endpoint = found[-1].id if len(found) == self._at_once else None
        # Those that work do not wait for those that fail.
        return sorted(found, key=lambda endpoint: endpoint.failing_since is not None)

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
