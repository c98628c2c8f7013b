"""What tries leave in the database: attempts, deliveries, and what they say of their endpoint.

Rows are locked in one order, the endpoint before its deliveries, as by the requests that send again. The
endpoint's is not locked before it is written: who writes an event has the organization's row, and then wants
a share of this one.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.activities.steps.jitter import jittered
from deployerp.activities.webhooks.messages import Try
from deployerp.core.settings import Settings
from deployerp.database.base import metadata, new_id, utc_now
from deployerp.domain.events.log import write_event
from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.webhooks.endpoints import WebhookEndpoint

_ATTEMPTS = metadata.tables["webhook_attempts"]
_DELIVERIES = metadata.tables["webhook_deliveries"]
# What a try changes of its delivery.
_CHANGED = ("state", "attempts", "next_attempt_at", "error", "finished_at", "updated_at")
_CHANGE = (
    update(_DELIVERIES)
    .where(_DELIVERIES.c.id == bindparam("delivery_id"))
    .values({name: bindparam(f"new_{name}") for name in _CHANGED})
)


async def record(
    session: AsyncSession, endpoint: WebhookEndpoint, tries: Sequence[Try], now: datetime, settings: Settings
) -> list[EndpointOrder]:
    """Writes tries that ended together, in the transaction in which `endpoint` was read.

    Returns the endpoints that are to be woken to hear of this one's end.
    """
    told = await _record_endpoint(session, endpoint, tries, now, settings)
    await _record_deliveries(session, tries, now, settings.webhook_retry_seconds)
    return told


async def see_change(session: AsyncSession, endpoint: WebhookEndpoint) -> None:
    """Reads an endpoint as it is after its last change, and remembers that this was seen."""
    await session.execute(
        update(WebhookEndpoint)
        .where(col(WebhookEndpoint.id) == endpoint.id)
        .values(unseen_change=False, updated_at=col(WebhookEndpoint.updated_at))
        .execution_options(synchronize_session=False)
    )
    # Only now that the row is locked: there may have been another change since it was read.
    await session.refresh(endpoint)


async def fail_pending(session: AsyncSession, endpoint_id: UUID, why: str, now: datetime) -> None:
    """Ends what waits for an endpoint that takes nothing any more."""
    await session.execute(
        update(_DELIVERIES)
        .where(_DELIVERIES.c.endpoint_id == endpoint_id, _DELIVERIES.c.state == "pending")
        .values(state="failed", error=why, next_attempt_at=None, finished_at=now, updated_at=utc_now())
    )


async def _record_endpoint(
    session: AsyncSession, endpoint: WebhookEndpoint, tries: Sequence[Try], now: datetime, settings: Settings
) -> list[EndpointOrder]:
    failing_since = endpoint.failing_since
    if any(each.accepted for each in tries):
        failing_since = None
    elif any(each.failed for each in tries):
        failing_since = failing_since or now
    if failing_since != endpoint.failing_since:
        await session.execute(
            update(WebhookEndpoint)
            .where(col(WebhookEndpoint.id) == endpoint.id)
            # Nobody has changed it: it has been seen to fail, or to work again.
            .values(failing_since=failing_since, updated_at=col(WebhookEndpoint.updated_at))
        )
    reason = _why_disable(tries, failing_since, now, settings.webhook_disable_days)
    if reason is None or not endpoint.enabled or endpoint.deleted_at is not None:
        return []
    endpoint.enabled, endpoint.disabled_reason = False, reason
    return await write_event(session, "webhook_endpoint.disabled", endpoint)


def _why_disable(
    tries: Sequence[Try], failing_since: datetime | None, now: datetime, days: float
) -> str | None:
    if any(each.gone for each in tries):
        return "The receiver answered 410 Gone."
    if failing_since is not None and now - failing_since >= timedelta(days=days):
        return f"Nothing was accepted for {days:g} days."
    return None


async def _record_deliveries(
    session: AsyncSession, tries: Sequence[Try], now: datetime, schedule: Sequence[float]
) -> None:
    found = await session.execute(
        select(_DELIVERIES)
        .where(_DELIVERIES.c.id.in_([each.delivery_id for each in tries]))
        .order_by(_DELIVERIES.c.id)
        .with_for_update()
    )
    rows = {row.id: row for row in found}
    # What was forgotten in the meantime needs no record.
    tried = [(rows[each.delivery_id], each) for each in tries if each.delivery_id in rows]
    if tried:
        await session.execute(insert(_ATTEMPTS), [_attempt(row, each) for row, each in tried])
        await session.execute(_CHANGE, [_changed(row, each, now, schedule) for row, each in tried])


def _attempt(delivery: Row[Any], tried: Try) -> dict[str, Any]:
    answer, now = tried.answer, utc_now()
    return {
        "id": new_id(),
        "created_at": now,
        "updated_at": now,
        "delivery_id": delivery.id,
        "number": delivery.attempts + 1,
        "status_code": answer.status if answer else None,
        "error": tried.error,
        "duration_ms": tried.duration_ms,
        "response_excerpt": answer.excerpt if answer else None,
    }


def _changed(delivery: Row[Any], tried: Try, now: datetime, schedule: Sequence[float]) -> dict[str, Any]:
    new = {name: getattr(delivery, name) for name in _CHANGED}
    new |= {"attempts": delivery.attempts + 1, "updated_at": utc_now()}
    if tried.accepted:
        new |= {"state": "succeeded", "error": None, "next_attempt_at": None, "finished_at": now}
    # Otherwise it has come to its end while it was under way: a failure has nothing to add to that.
    elif delivery.state == "pending":
        new |= {"error": tried.error} | _next(delivery, tried, now, schedule)
    return {"delivery_id": delivery.id} | {f"new_{name}": value for name, value in new.items()}


def _next(delivery: Row[Any], tried: Try, now: datetime, schedule: Sequence[float]) -> dict[str, Any]:
    retries = delivery.attempts - delivery.attempts_before
    if tried.final or retries >= len(schedule):
        return {"state": "failed", "next_attempt_at": None, "finished_at": now}
    asked = (tried.answer and tried.answer.retry_after) or 0
    wait = max(jittered(schedule[retries]), asked)
    return {"next_attempt_at": now + timedelta(seconds=wait)}
