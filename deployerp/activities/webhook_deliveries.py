"""One try of delivering an event to an endpoint.

`records.py` is the only writer of operations and resources; the rows of a delivery, its attempts and the
switch of an endpoint whose receiver is gone are written here.

The message id is `evt_<event id>`, the event's own: it is the same for every try, resend and replay, and at
every endpoint, so that a receiver that sees an event twice, in whatever way, recognises it.
"""

import json
import time
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from standardwebhooks import Webhook
from temporalio import activity

from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.errors import DeployError, NotFound, PayloadTooLarge
from deployerp.domain.events import Event
from deployerp.domain.messages import AttemptOrder, AttemptResult
from deployerp.domain.secrets import Vault
from deployerp.domain.webhook_deliveries import WebhookAttempt, WebhookDelivery
from deployerp.domain.webhook_endpoints import WebhookEndpoint
from deployerp.drivers.http import Answer, WebhookSender

# Standard Webhooks asks for payloads under 20 kB.
_LARGEST_BODY = 20_000


@dataclass(frozen=True)
class _Outcome:
    """What a try came to: without an `error` it was accepted; a `final` one is not followed by another."""

    error: str | None
    final: bool = False
    duration_ms: int = 0
    answer: Answer | None = None


class WebhookActivities:
    """Sends what the event log says to those who asked for it."""

    def __init__(self, sessions: SessionFactory, vault: Vault, sender: WebhookSender) -> None:
        self._sessions = sessions
        self._vault = vault
        self._sender = sender

    @activity.defn
    async def attempt_delivery(self, order: AttemptOrder) -> AttemptResult:
        """Sends once and records it; a delivery that has come to its end is left alone.

        At least once: a try whose record was lost is sent again under the same number. Raises NotFound.
        """
        async with self._sessions() as session, session.begin():
            delivery = await _locked_delivery(session, order)
            if delivery.state != "pending":
                return AttemptResult(done=True)
            event = await session.get_one(Event, delivery.event_id)
            endpoint = await session.get_one(WebhookEndpoint, delivery.endpoint_id)
        # No transaction is open while somebody else's server thinks.
        outcome = await self._try(event, endpoint)
        async with self._sessions() as session, session.begin():
            return await _record(session, order, outcome)

    async def _try(self, event: Event, endpoint: WebhookEndpoint) -> _Outcome:
        closed = _why_closed(endpoint)
        if closed is not None:
            return _Outcome(closed, final=True)
        started = time.perf_counter()
        try:
            body = _body(event)
            headers = self._headers(event, endpoint, body)
            return _outcome_of(await self._sender.send(endpoint.url, body, headers))
        except DeployError as error:
            # Whatever it was may be put right before the next try: a name, a route, a key, a setting.
            return _Outcome(error.message, duration_ms=round((time.perf_counter() - started) * 1000))

    def _headers(self, event: Event, endpoint: WebhookEndpoint, body: bytes) -> dict[str, str]:
        now = utc_now()
        message_id = f"evt_{event.id.hex}"
        webhook = Webhook(self._vault.open(endpoint.sealed_secret))
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": webhook.sign(message_id, now, body.decode()),
        }


def _body(event: Event) -> bytes:
    payload = {"type": event.type, "timestamp": _rfc3339(event.created_at), "data": event.data}
    body = json.dumps(payload, separators=(",", ":")).encode()
    if len(body) >= _LARGEST_BODY:
        raise PayloadTooLarge(
            f"The event is larger than webhooks may be ({_LARGEST_BODY} bytes): read it from /v1/events."
        )
    return body


def _rfc3339(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _why_closed(endpoint: WebhookEndpoint) -> str | None:
    if endpoint.deleted_at is not None:
        return "The endpoint was deleted before the event had reached it: nothing was sent."
    if endpoint.enabled:
        return None
    reason = f" ({endpoint.disabled_reason})" if endpoint.disabled_reason else ""
    return f"The endpoint is disabled{reason}: enable it and send the delivery again."


def _outcome_of(answer: Answer) -> _Outcome:
    error, final = _verdict(answer.status)
    return _Outcome(error, final, answer.duration_ms, answer)


def _verdict(status: int) -> tuple[str | None, bool]:
    """What is wrong with a status, if anything, and whether that is the end of it."""
    if 200 <= status < 300:
        return None, True
    if status == HTTPStatus.GONE:
        return "The receiver answered 410: it wants no more events, and its endpoint was disabled.", True
    if 300 <= status < 400:
        return f"The receiver answered {status}: redirects are not followed, set the final URL.", False
    return f"The receiver answered {status}: only 2xx counts as received.", False


async def _record(session: AsyncSession, order: AttemptOrder, outcome: _Outcome) -> AttemptResult:
    """Writes the attempt and what it means for delivery and endpoint in the caller's transaction."""
    delivery = await _locked_delivery(session, order)
    if delivery.state != "pending":
        # The same try ran twice, and the other one came to an end first.
        return AttemptResult(done=True)
    await _write_attempt(session, delivery.id, order.number, outcome)
    delivery.attempts = max(delivery.attempts, order.number)
    if outcome.error is None:
        delivery.state = "succeeded"
    elif outcome.final or order.last:
        delivery.state = "failed"
    if outcome.answer is not None and outcome.answer.status == HTTPStatus.GONE:
        await _disable(session, delivery.endpoint_id)
    if delivery.state != "pending":
        delivery.finished_at = utc_now()
        return AttemptResult(done=True)
    return AttemptResult(done=False, retry_after=outcome.answer.retry_after if outcome.answer else None)


async def _write_attempt(session: AsyncSession, delivery_id: UUID, number: int, outcome: _Outcome) -> None:
    attempt = await session.scalar(
        select(WebhookAttempt).where(
            col(WebhookAttempt.delivery_id) == delivery_id, col(WebhookAttempt.number) == number
        )
    )
    if attempt is None:
        attempt = WebhookAttempt(delivery_id=delivery_id, number=number)
        session.add(attempt)
    attempt.error, attempt.duration_ms = outcome.error, outcome.duration_ms
    attempt.status_code = outcome.answer.status if outcome.answer else None
    attempt.response_excerpt = outcome.answer.excerpt if outcome.answer else None


async def _disable(session: AsyncSession, endpoint_id: UUID) -> None:
    endpoint = await session.get_one(WebhookEndpoint, endpoint_id)
    endpoint.enabled = False
    endpoint.disabled_reason = "The receiver answered 410 Gone."


async def _locked_delivery(session: AsyncSession, order: AttemptOrder) -> WebhookDelivery:
    delivery_id = UUID(order.delivery.delivery_id)
    delivery = await session.get(WebhookDelivery, delivery_id, with_for_update=True)
    if delivery is None:
        raise NotFound(f"Delivery {delivery_id} does not exist any more.")
    return delivery
