"""A turn of an endpoint: some seconds in which what is due is sent to it.

The rows of deliveries, attempts and the switch of an endpoint whose receiver is gone are written by
`webhook_tries`; `records.py` is the only writer of operations and resources.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from temporalio import activity

from deployerp.activities.webhooks.breaker import Breaker
from deployerp.activities.webhooks.messages import Try, try_once
from deployerp.activities.webhooks.tries import fail_pending, record, see_change
from deployerp.core.errors import NotFound
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.operations.messages import TurnOrder, TurnResult
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint
from deployerp.domain.webhooks.queue import fall_asleep
from deployerp.drivers.temporal import Temporal
from deployerp.drivers.web.http import WebhookSender

# A turn ends after so many seconds, unless answers are slow: others would have to wait until they have come.
_TURN_SECONDS, _SLOW_SECONDS = 3.0, 1.0
# So many in all.
_LONGEST_TURN_SECONDS = 60.0
# How many deliveries are read at once.
_BATCH = 100
# Seconds between looks when nothing is due, until it falls asleep: to be woken costs more than to look.
_PAUSES = (0.05, 0.05, 0.1, 0.2, 0.3, 0.3)


@dataclass(frozen=True)
class WebhookActivities:
    """Sends what the event log says to those who asked for it."""

    sessions: SessionFactory
    vault: Vault
    sender: WebhookSender
    temporal: Temporal
    settings: Settings

    @activity.defn
    async def send_due(self, order: TurnOrder) -> TurnResult:
        """Sends what is due to an endpoint, and says when there will be more.

        At least once: a try whose record was lost is sent again under the same id. Raises NotFound.
        """
        return await _Turn(self, order).take()


class _Clock:
    """Temporal's time: the pauses between tries are its timers'."""

    def __init__(self) -> None:
        self._started_at = activity.info().started_time
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Since the beginning of the turn."""
        return time.monotonic() - self._started

    def now(self) -> datetime:
        return self._started_at + timedelta(seconds=self.seconds())


class _Turn:
    def __init__(self, tools: WebhookActivities, order: TurnOrder) -> None:
        self._tools = tools
        self._endpoint_id = UUID(order.endpoint.endpoint_id)
        self._breaker = Breaker(order.failures)
        self._clock = _Clock()
        self._due: deque[tuple[UUID, Event]] = deque()
        self._under_way: dict[asyncio.Task[Try], tuple[UUID, float]] = {}
        self._pauses = iter(_PAUSES)

    async def take(self) -> TurnResult:
        async with self._tools.sender:
            try:
                await self._send()
            finally:
                await self._drop()
        async with self._tools.sessions() as session, session.begin():
            wait = await fall_asleep(session, self._endpoint_id, self._clock.now())
        if wait is not None and self._breaker.is_open:
            return TurnResult(self._breaker.failures, self._breaker.pause(), paused=True)
        return TurnResult(self._breaker.failures, None if wait is None else wait.total_seconds())

    async def _send(self) -> None:
        """Until the time is up, the breaker opens, or nothing has become due for a while."""
        while True:
            if self._free() > 0 and not self._due:
                await self._look()
            self._begin()
            pause = next(self._pauses, None)
            if self._under_way:
                await self._end(pause or _PAUSES[-1])
            elif pause is None or self._is_over():
                return
            else:
                await asyncio.sleep(pause)

    def _is_over(self) -> bool:
        now = self._clock.seconds()
        answers_are_slow = any(now - begun > _SLOW_SECONDS for _, begun in self._under_way.values())
        longest = _LONGEST_TURN_SECONDS if answers_are_slow else _TURN_SECONDS
        return now > longest or self._breaker.is_open or activity.is_worker_shutdown()

    def _free(self) -> int:
        """How many more may be under way."""
        if self._is_over():
            return 0
        at_once = 1 if self._breaker.is_probing else self._tools.settings.webhook_concurrency
        return at_once - len(self._under_way)

    async def _look(self) -> None:
        """Reads what is due; at an endpoint that takes nothing any more, that is the end of it."""
        now = self._clock.now()
        async with self._tools.sessions() as session, session.begin():
            await self._read_endpoint(session)
            if self._endpoint.unseen_change:
                await see_change(session, self._endpoint)
                self._breaker = Breaker(0)
            if why := self._endpoint.why_closed:
                await fail_pending(session, self._endpoint_id, why, now)
                return
            under_way = {delivery_id for delivery_id, _ in self._under_way.values()}
            found = await _read_due(session, self._endpoint_id, now, _BATCH + len(under_way))
            self._due.extend(each for each in found if each[0] not in under_way)
        if self._due:
            self._pauses = iter(_PAUSES)

    async def _read_endpoint(self, session: AsyncSession) -> None:
        """Anew each time: it may have been changed, disabled, deleted."""
        endpoint = await session.get(WebhookEndpoint, self._endpoint_id)
        if endpoint is None:
            raise NotFound(f"The webhook endpoint {self._endpoint_id} does not exist any more.")
        self._endpoint = endpoint

    def _begin(self) -> None:
        while self._due and self._free() > 0:
            delivery_id, event = self._due.popleft()
            attempt = try_once(delivery_id, event, self._endpoint, self._tools.vault, self._tools.sender)
            self._under_way[asyncio.create_task(attempt)] = delivery_id, self._clock.seconds()

    async def _end(self, seconds: float) -> None:
        """Waits so long for tries to end, and records those that do together."""
        ended, _ = await asyncio.wait(self._under_way, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ended:
            return
        tries = [task.result() for task in ended]
        for task in ended:
            del self._under_way[task]
        self._pauses = iter(_PAUSES)
        self._breaker.count(tries)
        # No place is empty while the database writes.
        self._begin()
        async with self._tools.sessions() as session, session.begin():
            await self._read_endpoint(session)
            told = await record(session, self._endpoint, tries, self._clock.now(), self._tools.settings)
        if self._endpoint.why_closed:
            self._due.clear()
        await self._tools.temporal.wake_endpoints(told)

    async def _drop(self) -> None:
        """What an interruption leaves under way is sent again by the next turn."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)


async def _read_due(
    session: AsyncSession, endpoint_id: UUID, now: datetime, at_most: int
) -> list[tuple[UUID, Event]]:
    found = await session.execute(
        select(col(WebhookDelivery.id), Event)
        .join(Event, col(Event.id) == col(WebhookDelivery.event_id))
        .where(
            col(WebhookDelivery.endpoint_id) == endpoint_id,
            col(WebhookDelivery.state) == "pending",
            col(WebhookDelivery.next_attempt_at) <= now,
        )
        .order_by(col(WebhookDelivery.next_attempt_at), col(WebhookDelivery.id))
        .limit(at_most)
    )
    return [(delivery_id, event) for delivery_id, event in found]
