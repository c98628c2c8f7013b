"""One try of a delivery: real database, real receiver, signatures checked by two implementations."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import select
from sqlmodel import col
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from deployerp.activities.webhook_deliveries import WebhookActivities
from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory, metadata, open_database, session_factory
from deployerp.domain.errors import NotFound
from deployerp.domain.events import Event
from deployerp.domain.messages import AttemptOrder, AttemptResult
from deployerp.domain.organizations import Organization
from deployerp.domain.secrets import Vault, new_encryption_key
from deployerp.domain.webhook_deliveries import WebhookAttempt, WebhookDelivery
from deployerp.domain.webhook_endpoints import WebhookEndpoint, new_webhook_secret
from deployerp.drivers.http import WebhookSender

LOOPBACK = IPv4Network("127.0.0.0/8")
VAULT = Vault([SecretStr(new_encryption_key())])
SECRET = new_webhook_secret()
DATA = {"id": "0199", "name": "Größe ✓", "statusMessage": None}

Respond = Callable[[web.Request], Awaitable[web.Response]]


@dataclass
class Receiver:
    url: str = ""
    received: list[tuple[dict[str, str], str]] = field(default_factory=list)

    def verified(self) -> list[Any]:
        """The payloads, after both implementations have accepted their signatures."""
        for headers, body in self.received:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
            key = base64.b64decode(SECRET.removeprefix("whsec_"))
            expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{expected}"
        return [Webhook(SECRET).verify(body, headers) for headers, body in self.received]


@asynccontextmanager
async def receiving(*statuses: int, respond: Respond | None = None) -> AsyncIterator[Receiver]:
    """A receiver that answers with one status after the other and stays with the last."""
    receiver = Receiver()

    async def handle(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        receiver.received.append((headers, await request.text()))
        if respond is not None:
            return await respond(request)
        return web.Response(status=statuses[min(len(receiver.received), len(statuses)) - 1], text="noted")

    application = web.Application()
    application.router.add_post("/hook", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[SessionFactory]:
    engine = open_database(f"sqlite+aiosqlite:///{tmp_path / 'deployerp.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield session_factory(engine)
    await engine.dispose()


@dataclass
class Case:
    """A delivery in the database and what carries it out."""

    sessions: SessionFactory
    activities: WebhookActivities
    delivery: WebhookDelivery

    async def attempt(self, number: int = 1, *, last: bool = False) -> AttemptResult:
        return await self.activities.attempt_delivery(AttemptOrder(self.delivery.order, number, last))

    async def rows(self) -> tuple[WebhookDelivery, WebhookEndpoint, list[WebhookAttempt]]:
        async with self.sessions() as session:
            delivery = await session.get_one(WebhookDelivery, self.delivery.id)
            endpoint = await session.get_one(WebhookEndpoint, delivery.endpoint_id)
            attempts = await session.scalars(select(WebhookAttempt).order_by(col(WebhookAttempt.number)))
            return delivery, endpoint, list(attempts)


async def case_of(
    sessions: SessionFactory,
    url: str,
    *,
    allowed: IPv4Network | None = LOOPBACK,
    data: dict[str, Any] = DATA,
    secret: str | None = None,
    **endpoint_facts: Any,
) -> Case:
    organization = Organization(name="Acme", slug="acme")
    async with sessions() as session, session.begin():
        session.add(organization)
        await session.flush()
        event = Event(
            organization_id=organization.id,
            sequence=1,
            type="instance.deployed",
            resource_type="instance",
            resource_id=uuid4(),
            data=data,
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        endpoint = WebhookEndpoint(
            organization_id=organization.id,
            url=url,
            types=["*"],
            sealed_secret=secret or VAULT.seal(SECRET),
            **endpoint_facts,
        )
        session.add_all([event, endpoint])
        await session.flush()
        delivery = WebhookDelivery(
            organization_id=organization.id,
            endpoint_id=endpoint.id,
            event_id=event.id,
            event_type=event.type,
        )
        session.add(delivery)
    sender = WebhookSender([allowed] if allowed else [], timeout=0.5)
    return Case(sessions, WebhookActivities(sessions, VAULT, sender), delivery)


async def test_a_2xx_ends_the_delivery(sessions: SessionFactory) -> None:
    async with receiving(204) as receiver:
        case = await case_of(sessions, receiver.url)
        assert await case.attempt() == AttemptResult(done=True)
    [payload] = receiver.verified()
    assert payload == {"type": "instance.deployed", "timestamp": "2026-01-02T03:04:05Z", "data": DATA}
    [(headers, body)] = receiver.received
    assert headers["webhook-id"] == f"evt_{case.delivery.event_id.hex}"
    assert abs(int(headers["webhook-timestamp"]) - utc_now().timestamp()) < 10
    assert headers["content-type"] == "application/json"
    assert body == json.dumps(payload, separators=(",", ":"))
    delivery, endpoint, [attempt] = await case.rows()
    assert (delivery.state, delivery.attempts, endpoint.enabled) == ("succeeded", 1, True)
    assert delivery.finished_at is not None
    assert (attempt.number, attempt.status_code, attempt.error) == (1, 204, None)


async def test_a_failure_leaves_the_delivery_pending_until_the_last_try(sessions: SessionFactory) -> None:
    async with receiving(500) as receiver:
        case = await case_of(sessions, receiver.url)
        assert await case.attempt(1) == AttemptResult(done=False)
        delivery, _, _ = await case.rows()
        assert (delivery.state, delivery.attempts, delivery.finished_at) == ("pending", 1, None)
        assert await case.attempt(2, last=True) == AttemptResult(done=True)
    delivery, endpoint, attempts = await case.rows()
    assert (delivery.state, delivery.attempts, endpoint.enabled) == ("failed", 2, True)
    assert delivery.finished_at is not None
    assert [(each.number, each.status_code, each.response_excerpt) for each in attempts] == [
        (1, 500, "noted"),
        (2, 500, "noted"),
    ]
    assert attempts[0].error == "The receiver answered 500: only 2xx counts as received."


async def test_tries_are_the_same_message(sessions: SessionFactory) -> None:
    async with receiving(500) as receiver:
        case = await case_of(sessions, receiver.url)
        await case.attempt(1)
        await case.attempt(2)
    receiver.verified()
    (first, body), (second, same_body) = receiver.received
    assert (first["webhook-id"], body) == (second["webhook-id"], same_body)


async def test_a_try_that_runs_again_keeps_its_number(sessions: SessionFactory) -> None:
    async with receiving(500, 503) as receiver:
        case = await case_of(sessions, receiver.url)
        await case.attempt(1)
        await case.attempt(1)
    delivery, _, [attempt] = await case.rows()
    assert (delivery.attempts, attempt.number, attempt.status_code) == (1, 1, 503)


async def test_a_delivery_that_has_ended_is_not_sent_again(sessions: SessionFactory) -> None:
    async with receiving(200) as receiver:
        case = await case_of(sessions, receiver.url)
        await case.attempt(1)
        assert await case.attempt(1) == AttemptResult(done=True)
        assert await case.attempt(2, last=True) == AttemptResult(done=True)
    delivery, _, attempts = await case.rows()
    assert (len(receiver.received), len(attempts), delivery.state) == (1, 1, "succeeded")


async def test_a_try_that_runs_twice_at_once_does_not_take_back_a_success(sessions: SessionFactory) -> None:
    succeeded = asyncio.Event()

    async def respond(_: web.Request) -> web.Response:
        if len(receiver.received) == 1:
            await succeeded.wait()
            return web.Response(status=500)
        return web.Response()

    async with receiving(respond=respond) as receiver:
        case = await case_of(sessions, receiver.url)
        slow = asyncio.create_task(case.attempt(1, last=True))
        while not receiver.received:
            await asyncio.sleep(0.01)
        assert await case.attempt(1, last=True) == AttemptResult(done=True)
        succeeded.set()
        assert await slow == AttemptResult(done=True)
    delivery, _, [attempt] = await case.rows()
    assert (delivery.state, attempt.status_code, attempt.error) == ("succeeded", 200, None)


async def test_410_disables_the_endpoint(sessions: SessionFactory) -> None:
    async with receiving(410) as receiver:
        case = await case_of(sessions, receiver.url)
        assert await case.attempt() == AttemptResult(done=True)
    delivery, endpoint, [attempt] = await case.rows()
    assert (delivery.state, endpoint.enabled) == ("failed", False)
    assert endpoint.disabled_reason == "The receiver answered 410 Gone."
    assert attempt.status_code == 410
    assert "disabled" in (attempt.error or "")


@pytest.mark.parametrize("status", [301, 302, 307, 308, 304])
async def test_a_redirect_is_a_failure_that_says_what_to_do(sessions: SessionFactory, status: int) -> None:
    async with receiving(status) as receiver:
        case = await case_of(sessions, receiver.url)
        assert await case.attempt() == AttemptResult(done=False)
    _, _, [attempt] = await case.rows()
    assert attempt.status_code == status
    assert "set the final URL" in (attempt.error or "")


async def test_retry_after_is_passed_on(sessions: SessionFactory) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "77"})

    async with receiving(respond=respond) as receiver:
        case = await case_of(sessions, receiver.url)
        assert await case.attempt() == AttemptResult(done=False, retry_after=77)


async def test_a_stalled_receiver_is_a_failure(sessions: SessionFactory) -> None:
    async def respond(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async with receiving(respond=respond) as receiver:
        case = await case_of(sessions, receiver.url)
        assert await case.attempt() == AttemptResult(done=False)
    _, _, [attempt] = await case.rows()
    assert attempt.status_code is None
    assert attempt.error == "No answer within 0.5 s: answer first, then work."
    assert 450 < attempt.duration_ms < 2000


async def test_an_address_that_must_not_be_called_is_a_failure_that_says_what_to_do(
    sessions: SessionFactory,
) -> None:
    async with receiving(200) as receiver:
        case = await case_of(sessions, receiver.url, allowed=None)
        assert await case.attempt() == AttemptResult(done=False)
    _, _, [attempt] = await case.rows()
    assert "DEPLOYERP_WEBHOOK_ALLOWED_NETWORKS" in (attempt.error or "")
    assert receiver.received == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"deleted_at": utc_now()}, "was deleted"),
        ({"enabled": False}, "is disabled: enable it"),
        ({"enabled": False, "disabled_reason": "Five days of failure."}, "disabled (Five days of failure.)"),
    ],
)
async def test_a_closed_endpoint_ends_the_delivery(
    sessions: SessionFactory, facts: dict[str, Any], words: str
) -> None:
    async with receiving(200) as receiver:
        case = await case_of(sessions, receiver.url, **facts)
        assert await case.attempt() == AttemptResult(done=True)
    delivery, _, [attempt] = await case.rows()
    assert (delivery.state, attempt.status_code, receiver.received) == ("failed", None, [])
    assert words in (attempt.error or "")


async def test_an_event_that_is_too_large_is_not_sent(sessions: SessionFactory) -> None:
    async with receiving(200) as receiver:
        case = await case_of(sessions, receiver.url, data={"name": "x" * 20_000})
        assert await case.attempt() == AttemptResult(done=False)
    _, _, [attempt] = await case.rows()
    assert "read it from /v1/events" in (attempt.error or "")
    assert receiver.received == []


async def test_an_answer_with_nul_and_broken_text_can_be_stored(sessions: SessionFactory) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(status=500, body=b"a\0\xffb")

    async with receiving(respond=respond) as receiver:
        case = await case_of(sessions, receiver.url)
        await case.attempt()
    _, _, [attempt] = await case.rows()
    assert attempt.response_excerpt == "a��b"


async def test_a_secret_that_does_not_open_is_a_failure_and_nothing_is_sent(sessions: SessionFactory) -> None:
    sealed_elsewhere = Vault([SecretStr(new_encryption_key())]).seal(SECRET)
    async with receiving(200) as receiver:
        case = await case_of(sessions, receiver.url, secret=sealed_elsewhere)
        assert await case.attempt() == AttemptResult(done=False)
    _, _, [attempt] = await case.rows()
    assert "DEPLOYERP_ENCRYPTION_KEYS" in (attempt.error or "")
    assert receiver.received == []


@pytest.mark.parametrize("status", [200, 500, 410])
async def test_the_secret_stays_in_the_signature(sessions: SessionFactory, status: int) -> None:
    async with receiving(status) as receiver:
        case = await case_of(sessions, receiver.url)
        with capture_logs() as logs:
            await case.attempt()
    assert len(receiver.verified()) == 1
    _, _, attempts = await case.rows()
    assert SECRET.removeprefix("whsec_") not in repr(logs) + repr(attempts) + repr(receiver.received)


async def test_a_delivery_that_does_not_exist_is_not_found(sessions: SessionFactory) -> None:
    case = await case_of(sessions, "http://127.0.0.1:9/")
    case.delivery.id = uuid4()
    with pytest.raises(NotFound, match=str(case.delivery.id)):
        await case.attempt()
