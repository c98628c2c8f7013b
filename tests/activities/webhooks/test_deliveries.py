"""Turns of sending: real databases, real receivers, signatures checked by two implementations."""

import asyncio
import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import select, update
from structlog.testing import capture_logs
from temporalio.testing import ActivityEnvironment

from deployerp.activities.webhooks import deliveries, messages
from deployerp.activities.webhooks.deliveries import WebhookActivities
from deployerp.core.errors import NotFound
from deployerp.core.secrets import Vault, new_encryption_key
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.operations.messages import EndpointOrder, TurnOrder, TurnResult
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import new_webhook_secret
from deployerp.domain.webhooks.queue import fall_asleep, wake
from deployerp.domain.webhooks.replays import send_again
from deployerp.drivers.temporal import Temporal
from deployerp.drivers.web.http import WebhookSender
from tests.webhooks import SECRET, VAULT, House, always, receiving, statuses

ON_LOOPBACK = (IPv4Network("127.0.0.0/8"),)
Take = Callable[..., Any]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn ends at once when nothing is due."""
    monkeypatch.setattr(deliveries, "_PAUSES", (0.01,))


@pytest.fixture
async def house(sessions: SessionFactory) -> House:
    return await House(sessions).found()


@pytest.fixture
async def take(sessions: SessionFactory, settings: Settings) -> Take:
    """Takes a turn, as if at some time after now."""
    temporal = await Temporal.open(settings)

    async def turn(
        order: EndpointOrder,
        failures: int = 0,
        *,
        after: timedelta = timedelta(),
        allowed: tuple[IPv4Network, ...] = ON_LOOPBACK,
        vault: Vault = VAULT,
        timeout: float = 0.5,
        **changed: Any,
    ) -> TurnResult:
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, started_time=utc_now() + after)
        activities = WebhookActivities(
            sessions, vault, WebhookSender(allowed, timeout), temporal, settings.model_copy(update=changed)
        )
        return await environment.run(activities.send_due, TurnOrder(order, failures))

    return turn


async def told_of(sessions: SessionFactory, event_type: str) -> list[Event]:
    async with sessions() as session:
        return list(await session.scalars(select(Event).where(Event.type == event_type)))


# What is sent


async def test_what_is_accepted_is_over(house: House, take: Take, sessions: SessionFactory) -> None:
    async with receiving(always(204)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(name="Größe ✓")
        async with sessions() as session, session.begin():
            await session.execute(update(Event).values(created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
        assert await take(order) == TurnResult(0, None)
    [(headers, body)] = receiver.requests
    payload = json.loads(body)
    assert payload.keys() == {"type", "timestamp", "data"}
    assert (payload["type"], payload["timestamp"]) == ("server.started", "2026-01-02T03:04:05Z")
    assert payload["data"]["name"] == "Größe ✓"
    [delivery] = await house.deliveries()
    assert headers["webhook-id"] == f"evt_{delivery.event_id.hex}"
    assert headers["content-type"] == "application/json"
    assert (delivery.state, delivery.attempts, delivery.error) == ("succeeded", 1, None)
    assert delivery.next_attempt_at is None
    assert delivery.finished_at is not None
    [attempt] = await house.attempts(delivery)
    assert (attempt.number, attempt.status_code, attempt.error) == (1, 204, None)


async def test_signatures_tell_the_real_time_whatever_temporal_says(house: House, take: Take) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        # The receiver refuses what is older or newer than five minutes.
        assert await take(order, after=timedelta(days=3)) == TurnResult(0, None)
    assert len(receiver.requests) == 1


@pytest.mark.fault("27")
async def test_what_is_sent_again_after_days_is_signed_with_the_time_of_that_try(
    house: House, take: Take, sessions: SessionFactory
) -> None:
    # The receiver verifies each request, those that it fails as well.
    async with receiving(statuses(500, 500, 200, 200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        for tries in (1, 2):
            assert (await take(order, after=timedelta(minutes=10 * tries))).failures == 1
        [delivery] = await house.deliveries()
        yesterday = utc_now() - timedelta(days=1)
        await house.change(delivery, created_at=yesterday)
        for _ in ("once it is up", "and once more"):
            async with sessions() as session, session.begin():
                ended = {"state": "failed", "finished_at": yesterday, "next_attempt_at": None}
                await session.execute(update(WebhookDelivery).values(ended))
                assert await send_again(session, [delivery.id], utc_now()) == 1
            assert await take(order) == TurnResult(0, None)
    assert len(receiver.requests) == 4
    assert len({*receiver.ids}) == len({*receiver.bodies}) == 1
    [delivery] = await house.deliveries()
    assert (delivery.state, delivery.attempts) == ("succeeded", 4)


async def test_both_secrets_sign_after_a_rotation_for_a_time(house: House, take: Take) -> None:
    newer = new_webhook_secret()
    facts = {"sealed_secret": VAULT.seal(newer), "sealed_old_secret": VAULT.seal(SECRET)}
    async with receiving(always(200)) as receiver:
        # The receiver knows the old one only.
        rotated = await house.listen(receiver.url, **facts, old_secret_until=utc_now() + timedelta(hours=1))
        await house.happen()
        assert await take(rotated) == TurnResult(0, None)
        await house.change(await house.endpoint(rotated), old_secret_until=utc_now() - timedelta(hours=1))
        await house.happen()
        assert (await take(rotated)).failures == 1
    [(headers, _)] = receiver.requests
    assert headers["webhook-signature"].count("v1,") == 2


async def test_headers_of_the_user_come_along_and_replace_none_of_ours(house: House, take: Take) -> None:
    headers = VAULT.seal_mapping({"Authorization": "Bearer x", "X-Shop": "1"})
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url, sealed_headers=headers)
        await house.happen()
        await take(order)
    [(sent, _)] = receiver.requests
    assert (sent["authorization"], sent["x-shop"]) == ("Bearer x", "1")


async def test_the_format_of_the_endpoint_is_kept_to(house: House, take: Take) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url, format="slack")
        await house.happen(name="shop")
        await take(order)
    assert "shop" in json.loads(receiver.bodies[0])["text"]


async def test_tries_are_the_same_message(house: House, take: Take) -> None:
    async with receiving(statuses(500, 200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await take(order)
        await take(order, after=timedelta(seconds=10))
    assert len(receiver.requests) == 2
    assert len(set(receiver.ids)) == len(set(receiver.bodies)) == 1


@pytest.mark.parametrize("status", [200, 500, 410])
async def test_secrets_stay_in_the_signature(house: House, take: Take, status: int) -> None:
    headers = VAULT.seal_mapping({"X-Key": "hunter2-header"})
    # It repeats what it was sent.
    async with receiving(always(status, body=b"X-Key: hunter2-header")) as receiver:
        order = await house.listen(receiver.url, sealed_headers=headers)
        await house.happen()
        with capture_logs() as logs:
            await take(order)
    [delivery] = await house.deliveries()
    seen = repr((logs, delivery, await house.attempts(delivery), receiver.bodies))
    assert SECRET.removeprefix("whsec_") not in seen
    assert "hunter2" not in seen


# What answers mean


async def test_a_failure_waits_for_its_next_try_and_says_why(house: House, take: Take) -> None:
    async with receiving(statuses(500)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        result = await take(order)
    [delivery] = await house.deliveries()
    assert (delivery.state, delivery.attempts, delivery.finished_at) == ("pending", 1, None)
    assert delivery.error == "The receiver answered 500: only 2xx counts as received."
    [attempt] = await house.attempts(delivery)
    assert (attempt.status_code, attempt.response_excerpt, attempt.error) == (500, "noted", delivery.error)
    assert result.failures == 1
    assert not result.paused
    assert 3 < result.wait < 5.5


async def test_the_schedule_has_an_end(house: House, take: Take) -> None:
    async with receiving(always(503)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        for number in range(3):
            result = await take(order, after=timedelta(minutes=number), webhook_retry_seconds=[5, 30])
    assert result.wait is None
    [delivery] = await house.deliveries()
    assert (delivery.state, delivery.attempts, delivery.next_attempt_at) == ("failed", 3, None)
    assert delivery.finished_at is not None
    assert [each.number for each in await house.attempts(delivery)] == [1, 2, 3]


async def test_what_is_sent_again_begins_its_schedule_anew_and_goes_on_counting(
    house: House, take: Take
) -> None:
    async with receiving(statuses(500, 500, 500, 200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await take(order, webhook_retry_seconds=[5])
        await take(order, after=timedelta(minutes=1), webhook_retry_seconds=[5])
        [delivery] = await house.deliveries()
        assert (delivery.state, delivery.attempts) == ("failed", 2)
        await house.change(
            delivery,
            state="pending",
            next_attempt_at=utc_now(),
            attempts_before=2,
            finished_at=None,
            error=None,
        )
        await take(order, webhook_retry_seconds=[5])
        [delivery] = await house.deliveries()
        assert (delivery.state, delivery.attempts) == ("pending", 3)
        await take(order, after=timedelta(minutes=1), webhook_retry_seconds=[5])
    [delivery] = await house.deliveries()
    assert (delivery.state, delivery.attempts, delivery.error) == ("succeeded", 4, None)
    statuses_seen = [(each.number, each.status_code) for each in await house.attempts(delivery)]
    assert statuses_seen == [(1, 500), (2, 500), (3, 500), (4, 200)]
    assert len(set(receiver.ids)) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308, 304])
async def test_a_redirect_is_a_failure_that_says_what_to_do(house: House, take: Take, status: int) -> None:
    async with receiving(always(status, headers={"Location": "/hook"})) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await take(order)
    [delivery] = await house.deliveries()
    [attempt] = await house.attempts(delivery)
    assert (delivery.state, attempt.status_code, len(receiver.requests)) == ("pending", status, 1)
    assert "set the final URL" in attempt.error


@pytest.mark.parametrize(("asked", "least", "most"), [("7200", 7190, 7200), ("1", 3, 5.5)])
async def test_retry_after_is_waited_for_when_it_is_longer(
    house: House, take: Take, asked: str, least: float, most: float
) -> None:
    async with receiving(always(429, headers={"Retry-After": asked})) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        result = await take(order)
    assert least < result.wait <= most


async def test_a_stalled_receiver_is_a_failure(house: House, take: Take) -> None:
    async with receiving(lambda _: 60.0) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await take(order, timeout=0.3)
    [delivery] = await house.deliveries()
    [attempt] = await house.attempts(delivery)
    assert (delivery.state, attempt.status_code) == ("pending", None)
    assert attempt.error == "No answer within 0.3 s: answer first, then work."
    assert attempt.duration_ms >= 290


async def test_an_address_that_must_not_be_called_is_a_failure_that_says_what_to_do(
    house: House, take: Take
) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await take(order, allowed=())
    [delivery] = await house.deliveries()
    assert (delivery.state, receiver.requests) == ("pending", [])
    assert "DEPLOYERP_ALLOWED_NETWORKS" in delivery.error


async def test_a_secret_that_does_not_open_is_a_failure_and_nothing_is_sent(house: House, take: Take) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await take(order, vault=Vault([SecretStr(new_encryption_key())]))
    [delivery] = await house.deliveries()
    assert (delivery.state, receiver.requests) == ("pending", [])
    assert "DEPLOYERP_ENCRYPTION_KEYS" in delivery.error


async def test_an_event_that_is_too_large_fails_at_once_and_is_no_fault_of_the_receiver(
    house: House, take: Take
) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(status_message="x" * 20_000)
        assert await take(order) == TurnResult(0, None)
    [delivery] = await house.deliveries()
    assert (delivery.state, receiver.requests) == ("failed", [])
    assert "read it from /v1/events" in delivery.error
    assert (await house.endpoint(order)).failing_since is None


async def test_an_event_that_nobody_has_thought_of_keeps_no_other_waiting(
    house: House, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_at_s0(format: str, event: Event) -> bytes:
        if event.data["name"] == "s0":
            raise KeyError("not for everybody")
        return render(format, event)

    render = messages.render
    monkeypatch.setattr(messages, "render", breaks_at_s0)
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(3)
        result = await take(order)
    broken, *others = await house.deliveries()
    assert (len(receiver.requests), [each.state for each in others]) == (2, ["succeeded"] * 2)
    assert (broken.state, broken.attempts) == ("pending", 1)
    assert broken.error == "Failed unexpectedly with KeyError: the worker's log tells where."
    assert 3 < result.wait < 5.5


async def test_an_answer_with_nul_and_broken_text_can_be_stored(house: House, take: Take) -> None:
    async with receiving(always(500, body=b"a\0\xffb")) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await take(order)
    [attempt] = await house.attempts((await house.deliveries())[0])
    assert attempt.response_excerpt == "a��b"


# What is due


async def test_nothing_is_sent_before_its_time_or_after_its_end(house: House, take: Take) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(3)
        later, failed, succeeded = await house.deliveries()
        await house.change(later, next_attempt_at=utc_now() + timedelta(hours=1))
        await house.change(failed, state="failed", next_attempt_at=None)
        await house.change(succeeded, state="succeeded", next_attempt_at=None)
        result = await take(order)
    assert receiver.requests == []
    assert 3500 < result.wait <= 3600


async def test_other_endpoints_are_left_to_their_own_turns(house: House, take: Take) -> None:
    async with receiving(always(200)) as receiver, receiving(always(200)) as other:
        order = await house.listen(receiver.url)
        await house.listen(other.url)
        await house.happen(3)
        assert await take(order) == TurnResult(0, None)
    assert (len(receiver.requests), other.requests) == (3, [])


async def test_more_than_are_read_at_once_are_all_sent_once(
    house: House, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "_BATCH", 7)
    # A busy machine must not be a reason for another turn.
    monkeypatch.setattr(deliveries, "_TURN_SECONDS", 60)
    async with receiving(lambda _: 0.01) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(100)
        assert await take(order, webhook_concurrency=4, timeout=30) == TurnResult(0, None)
    assert len(receiver.ids) == len(set(receiver.ids)) == 100
    assert receiver.most_at_once <= 4
    assert {(each.state, each.attempts) for each in await house.deliveries()} == {("succeeded", 1)}


async def test_slow_answers_do_not_keep_the_next_ones_from_being_sent(house: House, take: Take) -> None:
    last = asyncio.Event()

    async def respond(number: int) -> web.Response:
        if number == 23:
            last.set()
        if number <= 3:
            await last.wait()
        return web.Response()

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(23)
        # The first three are answered when the last has come.
        assert await take(order, webhook_concurrency=4, timeout=30) == TurnResult(0, None)
    assert receiver.most_at_once == 4
    assert {(each.state, each.attempts) for each in await house.deliveries()} == {("succeeded", 1)}


async def test_what_becomes_due_during_a_turn_is_sent_in_it(house: House, take: Take) -> None:
    news: list[asyncio.Task[Any]] = []

    def respond(number: int) -> web.Response:
        if number < 5:
            news.append(asyncio.create_task(house.happen()))
        return web.Response()

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        while len(receiver.requests) < 5:
            await take(order)
            await asyncio.gather(*news)
        await take(order)
    assert len(receiver.ids) == len(set(receiver.ids)) == 5


async def test_a_turn_has_an_end_and_the_next_goes_on(
    house: House, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving(lambda _: 0.2) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(20)
        # Long enough for a first look on a busy machine, and too short for seven answers one after the other.
        monkeypatch.setattr(deliveries, "_TURN_SECONDS", 0.9)
        assert await take(order, webhook_concurrency=3) == TurnResult(0, 0)
        begun = len(receiver.requests)
        assert 3 <= begun < 20
        # What was under way has been waited for.
        assert [each.state for each in await house.deliveries()].count("succeeded") == begun
        monkeypatch.setattr(deliveries, "_TURN_SECONDS", 60)
        assert await take(order) == TurnResult(0, None)
    assert len(receiver.ids) == len(set(receiver.ids)) == 20


async def test_a_turn_waits_a_while_for_more_after_its_last_answer(
    house: House, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last pause is under way when the answer comes, and all of them begin anew.
    monkeypatch.setattr(deliveries, "_PAUSES", (0.01, 1.5))
    news: list[asyncio.Task[Any]] = []

    async def happen_again() -> None:
        while (await house.deliveries())[0].state == "pending":
            await asyncio.sleep(0.05)
        await house.happen()

    def respond(number: int) -> float:
        if number == 1:
            news.append(asyncio.create_task(happen_again()))
        return 0.3

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        assert await take(order, timeout=30) == TurnResult(0, None)
        await asyncio.gather(*news)
    assert len(receiver.requests) == 2


@pytest.mark.parametrize(("seconds", "in_one_turn"), [(59.0, True), (61.0, False)])
async def test_a_turn_does_not_let_others_wait_for_a_slow_answer_until_it_is_too_long(
    house: House, take: Take, monkeypatch: pytest.MonkeyPatch, seconds: float, in_one_turn: bool
) -> None:
    now, answered = 0.0, asyncio.Event()
    monkeypatch.setattr(deliveries._Clock, "seconds", lambda _: now)

    async def respond(number: int) -> web.Response:
        nonlocal now
        if number == 1:
            await answered.wait()
        if number == 2:
            now = seconds
        if number == (30 if in_one_turn else 2):
            answered.set()
        return web.Response()

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(30)
        result = await take(order, webhook_concurrency=2, timeout=30)
    assert len(receiver.requests) == (30 if in_one_turn else 2)
    assert result.wait == (None if in_one_turn else 0)


async def test_an_endpoint_that_does_not_exist_is_not_found(take: Take) -> None:
    order = EndpointOrder(str(uuid4()), str(uuid4()))
    with pytest.raises(NotFound, match=order.endpoint_id):
        await take(order)


# Awake and asleep


async def test_an_endpoint_is_awake_from_its_first_event_until_nothing_is_due(
    house: House, take: Take
) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        assert not (await house.endpoint(order)).awake
        assert await house.happen() == [order]
        assert (await house.endpoint(order)).awake
        # It looks by itself: to wake it again would be for nothing.
        assert await house.happen() == []
        await take(order)
        assert not (await house.endpoint(order)).awake
        assert await house.happen() == [order]


async def test_to_fall_asleep_waits_for_whoever_writes_and_overlooks_nothing(
    house: House, take: Take, sessions: SessionFactory
) -> None:
    """A delivery that is sent again has no new row, and the endpoint is awake: nobody would be told."""
    order = await house.listen("http://127.0.0.1:9/")
    await house.happen()
    [delivery] = await house.deliveries()
    await house.change(delivery, state="succeeded", next_attempt_at=None)
    falling: asyncio.Task[Any]

    async def fall() -> timedelta | None:
        async with sessions() as session, session.begin():
            return await fall_asleep(session, delivery.endpoint_id, utc_now() + timedelta(minutes=1))

    async with sessions() as session, session.begin():
        again = await session.get_one(WebhookDelivery, delivery.id)
        again.state, again.next_attempt_at = "pending", utc_now()
        await session.flush()
        assert await wake(session, [delivery.endpoint_id]) == []
        falling = asyncio.create_task(fall())
        await asyncio.sleep(0.3)
        assert not falling.done()
    assert await falling == timedelta(0)
    assert (await house.endpoint(order)).awake


# Endpoints that take nothing any more


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"deleted_at": utc_now()}, "was deleted"),
        ({"enabled": False}, "is disabled: enable it"),
        ({"enabled": False, "disabled_reason": "Five days of failure."}, "disabled (Five days of failure.)"),
    ],
)
async def test_a_closed_endpoint_ends_what_waits_for_it(
    house: House, take: Take, facts: dict[str, Any], words: str
) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(3)
        later, _, over = await house.deliveries()
        await house.change(later, next_attempt_at=utc_now() + timedelta(hours=1))
        await house.change(over, state="succeeded", next_attempt_at=None)
        await house.change(await house.endpoint(order), **facts)
        assert await take(order) == TurnResult(0, None)
    *ended, kept = await house.deliveries()
    assert [(each.state, each.attempts, each.next_attempt_at) for each in ended] == [("failed", 0, None)] * 2
    assert all(words in each.error and each.finished_at for each in ended)
    assert (kept.state, kept.error, receiver.requests) == ("succeeded", None, [])


async def test_410_disables_the_endpoint_and_tells_the_others(
    house: House, take: Take, sessions: SessionFactory
) -> None:
    async with receiving(always(410)) as receiver, receiving(always(200)) as other:
        order = await house.listen(receiver.url)
        await house.happen(30)
        listening = await house.listen(other.url)
        assert (await take(order, webhook_concurrency=1)).wait is None
        await take(listening)
    assert len(receiver.requests) < 4
    first, *rest = await house.deliveries(order)
    assert first.state == "failed"
    assert "disabled" in first.error
    assert {each.state for each in rest} == {"failed"}
    assert sum("is disabled" in each.error for each in rest) >= 26
    endpoint = await house.endpoint(order)
    assert (endpoint.enabled, endpoint.disabled_reason) == (False, "The receiver answered 410 Gone.")
    [event] = await told_of(sessions, "webhook_endpoint.disabled")
    assert event.resource_id == endpoint.id
    assert (event.data["enabled"], event.data["disabledReason"]) == (False, endpoint.disabled_reason)
    assert json.loads(other.bodies[0])["type"] == "webhook_endpoint.disabled"


async def test_five_days_without_an_accepted_try_disable_the_endpoint(
    house: House, take: Take, sessions: SessionFactory
) -> None:
    async with receiving(always(500)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await take(order)
        assert (await take(order, after=timedelta(days=4.9))).failures == 1
        endpoint = await house.endpoint(order)
        assert (endpoint.enabled, endpoint.failing_since is None) == (True, False)
        await house.happen(2)
        assert (await take(order, after=timedelta(days=5.1))).wait is None
    endpoint = await house.endpoint(order)
    assert (endpoint.enabled, endpoint.disabled_reason) == (False, "Nothing was accepted for 5 days.")
    assert {each.state for each in await house.deliveries()} == {"failed"}
    assert len(await told_of(sessions, "webhook_endpoint.disabled")) == 1


async def test_an_accepted_try_begins_the_five_days_anew(house: House, take: Take) -> None:
    async with receiving(statuses(500, 200, 500)) as receiver:
        order = await house.listen(receiver.url)
        before = await house.endpoint(order)
        await house.happen()
        await take(order)
        failing = await house.endpoint(order)
        assert failing.failing_since is not None
        await take(order, after=timedelta(days=4))
        assert (await house.endpoint(order)).failing_since is None
        await house.happen()
        await take(order, after=timedelta(days=6))
        after = await house.endpoint(order)
    assert after.enabled
    assert after.failing_since > failing.failing_since + timedelta(days=5)
    # Nobody has changed the endpoint.
    assert before.updated_at == failing.updated_at == after.updated_at


async def test_what_is_accepted_while_its_endpoint_is_disabled_is_accepted(house: House, take: Take) -> None:
    disabling: list[asyncio.Task[None]] = []

    async def disable() -> None:
        await house.change(await house.endpoint(order), enabled=False)

    def respond(number: int) -> float:
        if number == 1:
            disabling.append(asyncio.create_task(disable()))
        return 0.3

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(30)
        await take(order, webhook_concurrency=2, timeout=30)
        await asyncio.gather(*disabling)
    states = [(each.state, each.attempts) for each in await house.deliveries()]
    assert states.count(("succeeded", 1)) == len(receiver.requests) < 10
    assert states.count(("failed", 0)) == 30 - len(receiver.requests)


# The breaker


async def test_after_ten_failures_in_a_row_a_receiver_is_left_alone(house: House, take: Take) -> None:
    async with receiving(always(500)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(30)
        result = await take(order, webhook_concurrency=1)
        assert (result.failures, result.paused, len(receiver.requests)) == (10, True, 10)
        assert 4.5 <= result.wait <= 5.5
        # A probe at a time, however much is due, and each pause is longer.
        for number, pause in enumerate([10, 20, 40, 80, 160, 300, 300, 300], start=11):
            result = await take(order, result.failures)
            assert (result.failures, result.paused, len(receiver.requests)) == (number, True, number)
            assert 0.9 * pause <= result.wait <= 1.1 * pause
    assert sum(each.attempts for each in await house.deliveries()) == len(receiver.requests)


async def test_those_that_were_under_way_when_it_opened_make_no_pause_longer(
    house: House, take: Take
) -> None:
    async with receiving(always(500)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(100)
        result = await take(order, webhook_concurrency=25)
    assert (result.failures, result.paused) == (10, True)
    assert 10 <= len(receiver.requests) < 60


async def test_a_probe_that_is_accepted_closes_it(house: House, take: Take) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(30)
        assert await take(order, 12) == TurnResult(0, None)
    assert len(set(receiver.ids)) == 30


@pytest.mark.fault("24")
async def test_failures_before_a_change_do_not_count(house: House, take: Take) -> None:
    async with receiving(statuses(*[500] * 9, 200)) as receiver:
        order = await house.listen(receiver.url, unseen_change=True, failing_since=utc_now())
        before = await house.endpoint(order)
        await house.happen(9)
        # More than one probe, and no pause after it.
        result = await take(order, 12, webhook_concurrency=1)
        after = await house.endpoint(order)
    assert (result.failures, result.paused, len(receiver.requests)) == (9, False, 9)
    assert not after.unseen_change
    # Nobody has changed the endpoint.
    assert after.updated_at == before.updated_at


async def test_it_opens_again_after_ten_more(house: House, take: Take) -> None:
    async with receiving(statuses(200, 500)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(50)
        result = await take(order, 15, webhook_concurrency=1)
    assert (result.failures, result.paused, len(receiver.requests)) == (10, True, 11)


async def test_a_failure_now_and_then_does_not_open_it(house: House, take: Take) -> None:
    def respond(number: int) -> web.Response:
        return web.Response(status=200 if number % 10 == 0 else 500)

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(40)
        result = await take(order, webhook_concurrency=1)
    assert not result.paused
    assert len(set(receiver.ids)) == 40


async def test_nothing_that_waits_is_no_reason_for_a_pause(house: House, take: Take) -> None:
    async with receiving(always(500)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(10)
        assert await take(order, webhook_retry_seconds=[]) == TurnResult(10, None)
    assert {each.state for each in await house.deliveries()} == {"failed"}


# Crashes


async def test_a_try_whose_record_was_lost_is_sent_again_under_the_same_id_and_number(
    house: House, take: Take, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: object) -> None:
        raise ConnectionResetError

    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        monkeypatch.setattr(deliveries, "record", breaks)
        with pytest.raises(ConnectionResetError):
            await take(order)
        monkeypatch.undo()
        assert [each.state for each in await house.deliveries()] == ["pending"]
        await take(order)
    [delivery] = await house.deliveries()
    assert len(receiver.requests) == 2
    assert len(set(receiver.ids)) == 1
    assert [each.number for each in await house.attempts(delivery)] == [1]


@pytest.mark.parametrize("first", [200, 500])
async def test_turns_that_run_at_once_count_every_try_and_take_back_no_success(
    house: House, take: Take, first: int
) -> None:
    """A worker that was thought dead, and the one that has taken its place."""
    answers = {1: (0.4, web.Response(status=first)), 2: (1.0, web.Response(status=700 - first))}
    async with receiving(answers.__getitem__) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await asyncio.gather(take(order, timeout=30), take(order, timeout=30))
    [delivery] = await house.deliveries()
    assert (delivery.state, delivery.attempts, len(receiver.requests)) == ("succeeded", 2, 2)
    assert (delivery.error, delivery.next_attempt_at) == (None, None)
    numbers = [(each.number, each.status_code) for each in await house.attempts(delivery)]
    assert numbers == [(1, first), (2, 700 - first)]


async def test_an_interrupted_turn_leaves_nothing_behind(house: House, take: Take) -> None:
    async with receiving(lambda _: 60.0) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(3)
        turn = asyncio.create_task(take(order, timeout=30))
        while len(receiver.requests) < 3:
            await asyncio.sleep(0.01)
        before = asyncio.all_tasks()
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        sending = [each for each in before if "try_once" in repr(each)]
        assert len(sending) == 3
        assert all(each.cancelled() for each in sending)
    assert {(each.state, each.attempts) for each in await house.deliveries()} == {("pending", 0)}


async def test_a_worker_that_stops_begins_nothing_more(
    house: House, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(number: int) -> web.Response:
        if number == 2:
            monkeypatch.setattr(deliveries.activity, "is_worker_shutdown", lambda: True)
        return web.Response()

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(20)
        assert await take(order, webhook_concurrency=1) == TurnResult(0, 0)
    assert len(receiver.requests) in (2, 3)
