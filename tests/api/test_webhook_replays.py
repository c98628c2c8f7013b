"""Replaying the events of a time to a webhook endpoint."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from deployerp.api import webhook_endpoints
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.drivers.temporal import Temporal
from tests.api.rows import Planted
from tests.conftest import Client, Fleet, new_client

NOW = utc_now()
HOOKS = "https://example.com/hooks"
Replay = Callable[..., Awaitable[int]]
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def at(n: int) -> datetime:
    """When the nth event was: a second after the one before, an hour ago."""
    return NOW + timedelta(seconds=n, hours=-1)


@pytest.fixture
async def events(client: Client, sessions: SessionFactory) -> list[UUID]:
    """Twelve events of an organization, in turns of an instance and of a server."""
    planted = Planted(sessions, client.organization_id)
    return await planted.add(Event, 12, make=lambda n: {"created_at": at(n)})


@pytest.fixture
async def endpoint(client: Client, events: list[UUID]) -> dict:
    """One that has come after all of them, and wants every type."""
    return await client.data("POST", "/v1/webhook-endpoints", {"url": HOOKS}, 201)


@pytest.fixture
def replay(client: Client, endpoint: dict) -> Replay:
    """Asks for it, by default for all since before the first event, and returns how many are sent."""

    async def ask(**body: Any) -> int:
        body = {"since": at(-1).isoformat()} | body
        told = await client.data("POST", f"/v1/webhook-endpoints/{endpoint['id']}/replay", body, 202)
        assert told.keys() == {"deliveries"}
        return told["deliveries"]

    return ask


@pytest.fixture
def queue(sessions: SessionFactory, endpoint: dict) -> Callable[[], Awaitable[list[WebhookDelivery]]]:
    """Reads the endpoint's deliveries, in the order in which those that are pending are sent."""

    async def read() -> list[WebhookDelivery]:
        own = col(WebhookDelivery.endpoint_id) == UUID(endpoint["id"])
        order = (col(WebhookDelivery.next_attempt_at), col(WebhookDelivery.id))
        async with sessions() as session:
            return list(await session.scalars(select(WebhookDelivery).where(own).order_by(*order)))

    return read


def delivered(client: Client, endpoint: dict, event: UUID, **facts: Any) -> WebhookDelivery:
    return WebhookDelivery(
        organization_id=client.organization_id,
        endpoint_id=UUID(endpoint["id"]),
        event_id=event,
        event_type="instance.deployed",
        **facts,
    )


async def test_what_it_has_missed_is_sent_in_order(
    events: list[UUID], replay: Replay, queue: Any, client: Client, endpoint: dict, settings: Settings
) -> None:
    before = utc_now()
    assert await replay() == 12
    waiting = await queue()
    assert [each.event_id for each in waiting] == events
    types = {"instance.deployed", "server.created"}
    for each in waiting:
        assert (each.state, each.attempts, each.attempts_before) == ("pending", 0, 0)
        assert each.organization_id == client.organization_id
        assert before <= each.next_attempt_at <= utc_now()
        assert each.event_type in types
    (last, *_) = await client.data("GET", f"/v1/webhook-deliveries?event_id={events[-1]}")
    assert (last["eventType"], last["state"]) == ("server.created", "pending")
    workflow = (await Temporal.open(settings)).client.get_workflow_handle(f"webhooks-{endpoint['id']}")
    assert (await workflow.describe()).workflow_type == "DeliverWebhooks"
    # It is under way: to ask again changes nothing.
    assert await replay() == 0
    assert await queue() == waiting


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (at(0), None, range(12)),
        (at(0) + timedelta(microseconds=1), None, range(1, 12)),
        (at(3), at(5), range(3, 6)),
        (at(3), at(5) - timedelta(microseconds=1), range(3, 5)),
        (at(4), at(4), range(4, 5)),
        (at(12), None, range(0)),
        (at(10), NOW + timedelta(days=1), range(10, 12)),
    ],
)
async def test_it_is_of_the_time_that_is_asked_for(
    events: list[UUID],
    replay: Replay,
    queue: Any,
    since: datetime,
    until: datetime | None,
    expected: Sequence[int],
) -> None:
    assert await replay(since=since.isoformat(), until=until and until.isoformat()) == len(expected)
    assert [each.event_id for each in await queue()] == [events[n] for n in expected]


@one_database
async def test_it_is_of_the_types_that_the_endpoint_wants_now(
    client: Client, endpoint: dict, events: list[UUID], replay: Replay, queue: Any
) -> None:
    path = f"/v1/webhook-endpoints/{endpoint['id']}"
    for types, expected in (
        (["backup.*"], []),
        (["server.*"], events[1::2]),
        (["server.*", "*.deployed"], events),
    ):
        await client.data("PATCH", path, {"types": types})
        await replay()
        assert sorted(each.event_id for each in await queue()) == sorted(expected)


@pytest.mark.parametrize("scope", ["all", "undelivered"])
async def test_what_was_sent_before_is_sent_again_and_what_was_accepted_unless_it_is_left_out(
    client: Client,
    endpoint: dict,
    events: list[UUID],
    sessions: SessionFactory,
    replay: Replay,
    queue: Any,
    scope: str,
) -> None:
    later, due = NOW + timedelta(days=1), NOW - timedelta(minutes=1)
    known = {
        "accepted": {"state": "succeeded", "attempts": 2, "next_attempt_at": None, "finished_at": NOW},
        "failed": {
            "state": "failed",
            "attempts": 10,
            "next_attempt_at": None,
            "error": "No.",
            "finished_at": NOW,
        },
        "waiting": {"state": "pending", "attempts": 3, "next_attempt_at": later, "error": "No."},
        "under way": {"state": "pending", "attempts": 1, "next_attempt_at": due, "error": "No."},
    }
    rows = {
        name: delivered(client, endpoint, event, **facts)
        for (name, facts), event in zip(known.items(), events[2:6], strict=True)
    }
    async with sessions() as session, session.begin():
        session.add_all(rows.values())
    left = {"under way"} | ({"accepted"} if scope == "undelivered" else set())
    assert await replay(scope=scope) == 12 - len(left)
    now = {each.event_id: each for each in await queue()}
    assert set(now) == set(events)
    for name, row in rows.items():
        found, facts = now[row.event_id], known[name]
        assert found.id == row.id
        assert found.attempts == facts["attempts"]
        if name in left:
            assert (found.state, found.attempts_before) == (facts["state"], 0)
            assert found.next_attempt_at == facts["next_attempt_at"]
        else:
            assert (found.state, found.attempts_before) == ("pending", facts["attempts"])
            assert (found.error, found.finished_at) == (None, None)
            assert NOW < found.next_attempt_at < later


async def test_pings_are_nobody_s_business_a_second_time(
    client: Client, fleet: Fleet, endpoint: dict, replay: Replay, queue: Any, sessions: SessionFactory
) -> None:
    other = await new_endpoint(client)
    async with sessions() as session, session.begin():
        planted = update(Event).values(type="webhook_endpoint.pinged", resource_id=UUID(other["id"]))
        await session.execute(planted.where(col(Event.sequence) < 12))
        own = update(Event).values(type="webhook_endpoint.pinged", resource_id=UUID(endpoint["id"]))
        await session.execute(own.where(col(Event.sequence) == 11))
    assert await replay() == 1
    assert [each.event_type for each in await queue()] == ["server.created"]


async def new_endpoint(client: Client) -> dict:
    return await client.data("POST", "/v1/webhook-endpoints", {"url": HOOKS}, 201)


async def test_it_is_of_one_organization_and_one_endpoint(
    client: Client, events: list[UUID], replay: Replay, settings: Settings, sessions: SessionFactory
) -> None:
    stranger = await new_client(client.http, settings)
    await Planted(sessions, stranger.organization_id).add(Event, 3, make=lambda n: {"created_at": at(n)})
    theirs = await new_endpoint(stranger)
    other = await new_endpoint(client)
    assert await replay() == 12
    for each, asker in ((other, client), (theirs, stranger)):
        assert await asker.data("GET", f"/v1/webhook-deliveries?endpoint_id={each['id']}") == []
    body = {"since": at(-1).isoformat()}
    told = await stranger.data("POST", f"/v1/webhook-endpoints/{theirs['id']}/replay", body, 202)
    assert told == {"deliveries": 3}


async def test_two_at_once_send_each_event_once(events: list[UUID], replay: Replay, queue: Any) -> None:
    sent = await asyncio.gather(*(replay() for _ in range(5)))
    assert sum(sent) == 12
    assert Counter(each.event_id for each in await queue()) == Counter(events)


@one_database
async def test_a_time_that_makes_no_sense_is_refused(
    client: Client, endpoint: dict, sessions: SessionFactory
) -> None:
    path = f"/v1/webhook-endpoints/{endpoint['id']}/replay"
    for body, fields, words in (
        ({}, ["since"], "required"),
        ({"since": "yesterday"}, ["since"], "RFC 3339"),
        ({"since": "2026-11-21"}, ["since"], "RFC 3339"),
        ({"since": (NOW - timedelta(days=30)).isoformat()}, ["since"], "in the last 30 days"),
        ({"since": (NOW + timedelta(days=1)).isoformat()}, ["since"], "not be later"),
        ({"since": at(2).isoformat(), "until": at(1).isoformat()}, ["since"], "not be later than `until`"),
        ({"since": at(2).isoformat(), "scope": "some"}, ["scope"], "'all' or 'undelivered'"),
        ({"since": at(2).isoformat(), "types": ["*"]}, ["types"], "not permitted"),
    ):
        error = await client.error("POST", path, body, code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == fields, body
        assert words in error["message"], body
    async with sessions() as session:
        assert (await session.scalars(select(WebhookDelivery))).all() == []


async def test_too_many_are_not_sent_at_once(
    client: Client, endpoint: dict, replay: Replay, queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_endpoints, "_MOST_REPLAYED", 11)
    path, body = f"/v1/webhook-endpoints/{endpoint['id']}/replay", {"since": at(0).isoformat()}
    error = await client.error("POST", path, body, code="validation_error")
    assert error["message"] == (
        "since: leaves more than 11 events: choose a later one, or an earlier `until`"
    )
    assert await queue() == []
    assert await replay(until=at(10).isoformat()) == 11
    assert await replay(since=at(11).isoformat()) == 1


async def test_many_are_sent_in_chunks(
    client: Client, sessions: SessionFactory, events: list[UUID], replay: Replay, queue: Any
) -> None:
    planted = Planted(sessions, client.organization_id)
    more = await planted.add(Event, 2500, first=12, make=lambda n: {"created_at": at(n // 10)})
    assert await replay() == 2512
    assert [each.event_id for each in await queue()] == events + more
    async with sessions() as session, session.begin():
        await session.execute(update(WebhookDelivery).values(state="succeeded", attempts=1))
    assert await replay(scope="undelivered") == 0
    assert await replay() == 2512
    assert [each.event_id for each in await queue()] == events + more


@one_database
async def test_nothing_is_replayed_to_a_disabled_endpoint(client: Client, endpoint: dict, queue: Any) -> None:
    path = f"/v1/webhook-endpoints/{endpoint['id']}"
    await client.data("PATCH", path, {"enabled": False})
    body = {"since": at(0).isoformat()}
    error = await client.error("POST", f"{path}/replay", body, code="invalid_state")
    assert error["message"] == "The endpoint is disabled: enable it first."
    await client.call("DELETE", path, status=204)
    await client.error("POST", f"{path}/replay", body, code="not_found")
    assert await queue() == []
