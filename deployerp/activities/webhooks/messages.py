"""What is sent to an endpoint, and what its receiver's answer means.

The message id is `evt_<event id>`, the event's own: it is the same for every try, resend and replay, and at
every endpoint, so that a receiver that sees an event twice, in whatever way, recognises it.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from http import HTTPStatus
from uuid import UUID

import structlog
from standardwebhooks import Webhook

from deployerp.activities.steps.interceptor import unexpected
from deployerp.core.errors import DeployError, PayloadTooLarge
from deployerp.core.secrets import Vault
from deployerp.database.base import utc_now
from deployerp.domain.events.event import Event
from deployerp.domain.webhooks.endpoints import WebhookEndpoint, added_headers, signing_secrets
from deployerp.domain.webhooks.formats import render
from deployerp.drivers.web.http import Answer, WebhookSender

log = structlog.get_logger()
# What is shorter is no secret, and could be anywhere in an answer.
_SECRET_LENGTH = 6


@dataclass(frozen=True)
class Try:
    """One try of a delivery: without an `error` it was accepted; a `final` one is not followed by another."""

    delivery_id: UUID
    error: str | None
    final: bool = False
    duration_ms: int = 0
    answer: Answer | None = None

    @property
    def accepted(self) -> bool:
        return self.error is None

    @property
    def failed(self) -> bool:
        """Whether it speaks against the receiver: an event that cannot be sent to anybody does not."""
        return self.error is not None and not (self.final and self.answer is None)

    @property
    def gone(self) -> bool:
        """Whether the receiver wants nothing more, ever."""
        return self.answer is not None and self.answer.status == HTTPStatus.GONE


async def try_once(
    delivery_id: UUID, event: Event, endpoint: WebhookEndpoint, vault: Vault, sender: WebhookSender
) -> Try:
    """Sends an event once; a failure of whatever kind is a result."""
    started = time.perf_counter()
    try:
        body = render(endpoint.format, event)
        added = added_headers(endpoint, vault)
        answer = await sender.send(endpoint.url, body, added | _headers(event, endpoint, vault, body))
    except DeployError as error:
        # All but the event may be put right before the next try: a name, a route, a key, a setting.
        final = isinstance(error, PayloadTooLarge)
        return Try(delivery_id, error.message, final, round((time.perf_counter() - started) * 1000))
    except Exception as error:
        # One event that nobody has thought of must not keep all others of its endpoint waiting.
        log.exception("unexpected", delivery_id=str(delivery_id))
        return Try(delivery_id, unexpected(error))
    shown = replace(answer, excerpt=_without(added.values(), answer.excerpt))
    return Try(delivery_id, *_verdict(answer.status), answer.duration_ms, shown)


def _without(secrets: Iterable[str], excerpt: str) -> str:
    """A receiver that repeats what it was sent shows it to whoever may read deliveries."""
    for secret in secrets:
        if len(secret) >= _SECRET_LENGTH:
            excerpt = excerpt.replace(secret, "***")
    return excerpt


def _headers(event: Event, endpoint: WebhookEndpoint, vault: Vault, body: bytes) -> dict[str, str]:
    # Not Temporal's time: the receiver compares it with its own clock.
    now = utc_now()
    message_id = f"evt_{event.id.hex}"
    secrets = signing_secrets(endpoint, vault, now)
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(
            Webhook(secret).sign(message_id, now, body.decode()) for secret in secrets
        ),
    }


def _verdict(status: int) -> tuple[str | None, bool]:
    """What is wrong with a status, if anything, and whether that is the end of it."""
    if 200 <= status < 300:
        return None, True
    if status == HTTPStatus.GONE:
        return "The receiver answered 410: it wants no more events, and its endpoint was disabled.", True
    if 300 <= status < 400:
        return f"The receiver answered {status}: redirects are not followed, set the final URL.", False
    return f"The receiver answered {status}: only 2xx counts as received.", False
