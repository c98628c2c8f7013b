"""Webhook deliveries through the API: what came of them, and sending them again."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.webhooks.deliveries import WebhookAttempt, WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint
from deployerp.drivers.temporal import Temporal
from tests.conftest import Client, Fleet

DELIVERIES = "/v1/webhook-deliveries"
THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
FAILED = {"state": "failed", "attempts": 10, "attempts_before": 0, "error": "No answer.", "finished_at": THEN}
ENDED = {
    "failed": FAILED | {"next_attempt_at": None},
    "accepted": FAILED | {"state": "succeeded", "attempts": 3, "error": None, "next_attempt_at": None},
    "waiting": {"state": "pending", "attempts": 4, "error": "No answer.", "next_attempt_at": LATER},
}
Row = Callable[[dict], Awaitable[WebhookDelivery]]
Set = Callable[..., Awaitable[None]]
every_end = pytest.mark.parametrize("end", ENDED)


@pytest.fixture
async def delivery(client: Client, fleet: Fleet) -> dict:
    """A new one: its endpoint is awake, and it has not been tried."""
    await client.data("POST", "/v1/webhook-endpoints", {"url": "https://example.com/"}, 201)
    await fleet.server()
    (found,) = await client.data("GET", DELIVERIES)
    return found


@pytest.fixture
def row(sessions: SessionFactory) -> Row:
    """Reads a delivery as the database has it."""

    async def read(delivery: dict) -> WebhookDelivery:
        async with sessions() as session:
            return await session.get_one(WebhookDelivery, UUID(delivery["id"]))

    return read


@pytest.fixture
def set_(sessions: SessionFactory) -> Set:
    """Has a row be so, as the worker leaves it."""

    async def write(model: Any, id: str, **values: Any) -> None:
        async with sessions() as session, session.begin():
            await session.execute(update(model).where(model.id == UUID(id)).values(**values))

    return write


async def test_a_delivery_tells_of_its_tries(
    client: Client, delivery: dict, sessions: SessionFactory, set_: Set
) -> None:
    assert (delivery["state"], delivery["attempts"], delivery["error"]) == ("pending", 0, None)
    due = datetime.fromisoformat(delivery["nextAttemptAt"])
    assert abs(due - utc_now()) < timedelta(minutes=5)
    path = f"{DELIVERIES}/{delivery['id']}"
    assert await client.data("GET", path) == delivery | {"attemptLog": []}
    async with sessions() as session, session.begin():
        for number, status in ((2, 204), (1, None)):
            attempt = {"status_code": status, "error": None if status else "No answer."}
            answer = "noted" if status else None
            session.add(
                WebhookAttempt(
                    delivery_id=UUID(delivery["id"]),
                    number=number,
                    duration_ms=number * 7,
                    response_excerpt=answer,
                    created_at=THEN + timedelta(seconds=number),
                    **attempt,
                )
            )
    await set_(WebhookDelivery, delivery["id"], **ENDED["accepted"])
    told = await client.data("GET", path)
    assert (told["state"], told["nextAttemptAt"], told["finishedAt"]) == (
        "succeeded",
        None,
        "2026-01-02T03:04:05Z",
    )
    assert told["attemptLog"] == [
        {
            "number": 1,
            "statusCode": None,
            "error": "No answer.",
            "durationMs": 7,
            "responseExcerpt": None,
            "createdAt": "2026-01-02T03:04:06Z",
        },
        {
            "number": 2,
            "statusCode": 204,
            "error": None,
            "durationMs": 14,
            "responseExcerpt": "noted",
            "createdAt": "2026-01-02T03:04:07Z",
        },
    ]


@every_end
async def test_whatever_came_of_it_it_is_sent_again(
    client: Client, delivery: dict, row: Row, set_: Set, settings: Settings, end: str
) -> None:
    await set_(WebhookDelivery, delivery["id"], **ENDED[end])
    await set_(WebhookEndpoint, delivery["endpointId"], awake=False)
    before = utc_now()
    answer = await client.request("POST", f"{DELIVERIES}/{delivery['id']}/resend")
    assert answer.status_code == 202
    told = answer.json()["data"]
    due = datetime.fromisoformat(told["nextAttemptAt"])
    assert before <= due <= utc_now()
    # The tries that there were are not forgotten, and the schedule begins anew after them.
    tried = ENDED[end]["attempts"]
    assert told == delivery | {"attempts": tried, "nextAttemptAt": told["nextAttemptAt"]}
    assert (await row(delivery)).attempts_before == tried
    assert answer.headers["Location"] == f"{DELIVERIES}/{delivery['id']}"
    assert await client.data("GET", answer.headers["Location"]) == told | {"attemptLog": []}
    workflow = (await Temporal.open(settings)).client.get_workflow_handle(
        f"webhooks-{delivery['endpointId']}"
    )
    assert (await workflow.describe()).workflow_type == "DeliverWebhooks"


async def test_the_endpoint_of_what_is_sent_again_is_awake(
    client: Client, delivery: dict, set_: Set, sessions: SessionFactory
) -> None:
    await set_(WebhookDelivery, delivery["id"], **ENDED["failed"])
    for awake in (True, False):
        await set_(WebhookEndpoint, delivery["endpointId"], awake=awake)
        await client.call("POST", f"{DELIVERIES}/{delivery['id']}/resend", status=202)
        async with sessions() as session:
            endpoint = await session.get_one(WebhookEndpoint, UUID(delivery["endpointId"]))
            assert endpoint.awake


async def test_what_is_under_way_is_left_alone(client: Client, delivery: dict, row: Row, set_: Set) -> None:
    under_way = {"state": "pending", "attempts": 4, "attempts_before": 1, "next_attempt_at": THEN}
    await set_(WebhookDelivery, delivery["id"], **under_way)
    known = await row(delivery)
    told = await client.data("POST", f"{DELIVERIES}/{delivery['id']}/resend", status=202)
    assert (told["state"], told["attempts"], told["nextAttemptAt"]) == ("pending", 4, "2026-01-02T03:04:05Z")
    assert await row(delivery) == known


async def test_nothing_is_sent_again_to_an_endpoint_that_is_closed(
    client: Client, delivery: dict, row: Row, set_: Set
) -> None:
    await set_(WebhookDelivery, delivery["id"], **ENDED["failed"])
    known = await row(delivery)
    path, endpoint = (
        f"{DELIVERIES}/{delivery['id']}/resend",
        f"/v1/webhook-endpoints/{delivery['endpointId']}",
    )
    await client.data("PATCH", endpoint, {"enabled": False})
    error = await client.error("POST", path, code="invalid_state")
    assert error["message"] == "The endpoint is disabled: enable it first."
    await client.call("DELETE", endpoint, status=204)
    error = await client.error("POST", path, code="invalid_state")
    assert error["message"] == "The endpoint was deleted: make another and replay the events to it."
    assert await row(delivery) == known
    await client.error("POST", f"{DELIVERIES}/{uuid4()}/resend", code="not_found")


async def test_the_audit_log_tells_what_was_sent_again(
    client: Client, delivery: dict, set_: Set, sessions: SessionFactory
) -> None:
    await set_(WebhookDelivery, delivery["id"], **ENDED["failed"])
    await client.call("POST", f"{DELIVERIES}/{delivery['id']}/resend", status=202)
    async with sessions() as session:
        own = col(AuditEntry.action) == "resend_webhook_delivery"
        (entry,) = await session.scalars(select(AuditEntry).where(own))
    assert (entry.resource_type, str(entry.resource_id)) == ("webhook_delivery", delivery["id"])
    assert entry.before is not None
    assert entry.after is not None
    assert (entry.before["state"], entry.after["state"]) == ("failed", "pending")
    assert (entry.before["error"], entry.after["error"]) == ("No answer.", None)
    assert (entry.before["attemptsBefore"], entry.after["attemptsBefore"]) == (0, 10)
