"""Deliveries from order to end: three days on the time-skipping server, and a round on a real one."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
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
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer, Worker

from deployerp.activities.interceptor import ActivityInterceptor
from deployerp.activities.records import Records
from deployerp.activities.webhook_deliveries import WebhookActivities
from deployerp.domain.database import SessionFactory, metadata, open_database, session_factory
from deployerp.domain.events import Event
from deployerp.domain.messages import DeliveryOrder
from deployerp.domain.organizations import Organization
from deployerp.domain.secrets import Vault, new_encryption_key
from deployerp.domain.webhook_deliveries import WebhookAttempt, WebhookDelivery
from deployerp.domain.webhook_endpoints import WebhookEndpoint, new_webhook_secret
from deployerp.drivers.http import WebhookSender
from deployerp.drivers.temporal import Temporal
from deployerp.workflows.webhook_deliveries import DELAYS, TRIES, WORKFLOWS, DeliverWebhook
from tests.skipping import skipping_environment

QUEUE = "webhooks"
VAULT = Vault([SecretStr(new_encryption_key())])
SECRET = new_webhook_secret()

Respond = Callable[[int], web.Response | float]
"""What the receiver does at its n-th request: an answer, or seconds of silence."""


def _binary(name: str) -> str:
    beside_python = Path(sys.executable).parent / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    assert found, f"{name} is missing: install the development requirements"
    return found


@pytest.fixture(scope="module")
async def skipping() -> AsyncIterator[WorkflowEnvironment]:
    binary = _binary("temporal-test-server")
    async with await skipping_environment(binary) as environment:
        yield environment


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[SessionFactory]:
    engine = open_database(f"sqlite+aiosqlite:///{tmp_path / 'deployerp.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield session_factory(engine)
    await engine.dispose()


@dataclass
class Receiver:
    url: str = ""
    ids: list[str] = field(default_factory=list)


@asynccontextmanager
async def receiving(respond: Respond) -> AsyncIterator[Receiver]:
    """A receiver that takes nothing without a signature that holds."""
    receiver = Receiver()

    async def handle(request: web.Request) -> web.Response:
        Webhook(SECRET).verify(await request.text(), dict(request.headers))
        receiver.ids.append(request.headers["webhook-id"])
        response = respond(len(receiver.ids))
        if isinstance(response, web.Response):
            return response
        await asyncio.sleep(response)
        return web.Response()

    application = web.Application()
    application.router.add_post("/hook", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


def always(status: int) -> Respond:
    return lambda _: web.Response(status=status)


async def order_for(sessions: SessionFactory, url: str) -> DeliveryOrder:
    async with sessions() as session, session.begin():
        organization = Organization(name="Acme", slug="acme")
        session.add(organization)
        await session.flush()
        event = Event(
            organization_id=organization.id,
            sequence=1,
            type="instance.deployed",
            resource_type="instance",
            resource_id=uuid4(),
            data={"name": "shop"},
        )
        endpoint = WebhookEndpoint(
            organization_id=organization.id, url=url, types=["*"], sealed_secret=VAULT.seal(SECRET)
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
    return delivery.order


async def ended(sessions: SessionFactory) -> tuple[str, bool, list[int | None]]:
    """The delivery's state, whether its endpoint is enabled, and the status of each attempt in its order."""
    async with sessions() as session:
        delivery = (await session.scalars(select(WebhookDelivery))).one()
        endpoint = (await session.scalars(select(WebhookEndpoint))).one()
        attempts = list(await session.scalars(select(WebhookAttempt).order_by(col(WebhookAttempt.number))))
    assert [each.number for each in attempts] == list(range(1, delivery.attempts + 1))
    return delivery.state, endpoint.enabled, [each.status_code for each in attempts]


def worker(client: Client, sessions: SessionFactory, *, timeout: float = 5) -> Worker:
    sender = WebhookSender([IPv4Network("127.0.0.1/32")], timeout=timeout)
    return Worker(
        client,
        task_queue=QUEUE,
        workflows=WORKFLOWS,
        activities=[WebhookActivities(sessions, VAULT, sender).attempt_delivery],
        interceptors=[ActivityInterceptor(Records(sessions, Temporal(client, QUEUE)))],
    )


async def deliver(
    client: Client, sessions: SessionFactory, order: DeliveryOrder, **options: Any
) -> WorkflowHandle[Any, Any]:
    """Carries a delivery out to its end."""
    async with worker(client, sessions, **options):
        handle = await client.start_workflow(
            DeliverWebhook.run, order, id=f"{order.workflow_id}-{uuid4()}", task_queue=QUEUE
        )
        await handle.result()
    return handle


async def pauses(handle: WorkflowHandle[Any, Any]) -> list[timedelta]:
    return [
        event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED
    ]


async def test_the_first_try_may_be_the_last(skipping: WorkflowEnvironment, sessions: SessionFactory) -> None:
    async with receiving(always(200)) as receiver:
        handle = await deliver(skipping.client, sessions, await order_for(sessions, receiver.url))
    assert await ended(sessions) == ("succeeded", True, [200])
    assert await pauses(handle) == []


async def test_a_failure_is_tried_again(skipping: WorkflowEnvironment, sessions: SessionFactory) -> None:
    async with receiving(lambda n: web.Response(status=500 if n == 1 else 200)) as receiver:
        handle = await deliver(skipping.client, sessions, await order_for(sessions, receiver.url))
    assert await ended(sessions) == ("succeeded", True, [500, 200])
    assert len(set(receiver.ids)) == 1
    [pause] = await pauses(handle)
    assert timedelta(seconds=4.5) <= pause <= timedelta(seconds=5.5)


async def test_it_gives_up_after_ten_tries_and_three_days(
    skipping: WorkflowEnvironment, sessions: SessionFactory
) -> None:
    async with receiving(always(503)) as receiver:
        handle = await deliver(skipping.client, sessions, await order_for(sessions, receiver.url))
    assert await ended(sessions) == ("failed", True, [503] * 10)
    assert receiver.ids == [receiver.ids[0]] * 10
    times = [event.event_time.ToDatetime() async for event in handle.fetch_history_events()]
    assert timedelta(days=2.7) < times[-1] - times[0] < timedelta(days=3.4)
    waited = await pauses(handle)
    assert len(waited) == TRIES - 1
    shares = [pause / delay for pause, delay in zip(waited, DELAYS, strict=True)]
    assert all(0.9 <= share <= 1.1 for share in shares)
    assert len(set(shares)) > 1


async def test_410_ends_it_at_once(skipping: WorkflowEnvironment, sessions: SessionFactory) -> None:
    async with receiving(always(410)) as receiver:
        await deliver(skipping.client, sessions, await order_for(sessions, receiver.url))
    assert await ended(sessions) == ("failed", False, [410])


async def test_a_redirect_is_not_followed_but_tried_again(
    skipping: WorkflowEnvironment, sessions: SessionFactory
) -> None:
    def respond(number: int) -> web.Response:
        return web.Response(status=307, headers={"Location": "/hook"}) if number == 1 else web.Response()

    async with receiving(respond) as receiver:
        await deliver(skipping.client, sessions, await order_for(sessions, receiver.url))
    assert await ended(sessions) == ("succeeded", True, [307, 200])


async def test_retry_after_is_waited_for_when_it_is_longer(
    skipping: WorkflowEnvironment, sessions: SessionFactory
) -> None:
    def respond(number: int) -> web.Response:
        wait = {1: "7200", 2: "1"}.get(number)
        return web.Response(status=429, headers={"Retry-After": wait}) if wait else web.Response()

    async with receiving(respond) as receiver:
        handle = await deliver(skipping.client, sessions, await order_for(sessions, receiver.url))
    assert await ended(sessions) == ("succeeded", True, [429, 429, 200])
    asked, planned = await pauses(handle)
    assert asked == timedelta(hours=2)
    assert timedelta(seconds=27) <= planned <= timedelta(seconds=33)


async def test_a_receiver_that_stalls_is_tried_again(
    skipping: WorkflowEnvironment, sessions: SessionFactory
) -> None:
    async with receiving(lambda n: 5.0 if n == 1 else web.Response()) as receiver:
        order = await order_for(sessions, receiver.url)
        await deliver(skipping.client, sessions, order, timeout=0.3)
    assert await ended(sessions) == ("succeeded", True, [None, 200])


async def test_an_endpoint_that_is_deleted_on_the_way_ends_it(
    skipping: WorkflowEnvironment, sessions: SessionFactory
) -> None:
    loop = asyncio.get_running_loop()
    deleted: list[asyncio.Task[None]] = []

    async def delete() -> None:
        async with sessions() as session, session.begin():
            endpoint = (await session.scalars(select(WebhookEndpoint))).one()
            endpoint.deleted_at = endpoint.created_at

    def respond(_: int) -> web.Response:
        deleted.append(loop.create_task(delete()))
        return web.Response(status=500)

    async with receiving(respond) as receiver:
        await deliver(skipping.client, sessions, await order_for(sessions, receiver.url))
    assert await ended(sessions) == ("failed", True, [500, None])
    assert len(receiver.ids) == 1


async def test_a_database_that_fails_for_a_time_costs_no_try(
    skipping: WorkflowEnvironment, sessions: SessionFactory
) -> None:
    failures = iter([ConnectionError("no database")] * 3)

    def failing_sessions() -> Any:
        failure = next(failures, None)
        if failure:
            raise failure
        return sessions()

    async with receiving(always(200)) as receiver:
        await deliver(skipping.client, failing_sessions, await order_for(sessions, receiver.url))
    assert await ended(sessions) == ("succeeded", True, [200])


async def test_an_unknown_delivery_fails_the_workflow_at_once(
    skipping: WorkflowEnvironment, sessions: SessionFactory
) -> None:
    order = DeliveryOrder(str(uuid4()), str(uuid4()), str(uuid4()), "instance.deployed")
    with pytest.raises(WorkflowFailureError) as caught:
        await deliver(skipping.client, sessions, order)
    assert isinstance(caught.value.cause, ActivityError)
    assert isinstance(caught.value.cause.cause, ApplicationError)
    assert caught.value.cause.cause.type == "not_found"


async def test_on_the_development_server_an_operator_sees_the_try_and_a_second_start_changes_nothing(
    sessions: SessionFactory,
) -> None:
    async with (
        await WorkflowEnvironment.start_local(dev_server_existing_path=_binary("temporal")) as environment,
        receiving(lambda n: web.Response(status=500 if n == 1 else 200)) as receiver,
    ):
        temporal = Temporal(environment.client, QUEUE)
        await temporal.ensure_search_attributes()
        order = await order_for(sessions, receiver.url)
        handle = environment.client.get_workflow_handle(order.workflow_id)
        async with worker(environment.client, sessions):
            await temporal.start_delivery(order)
            await temporal.start_delivery(order)
            while not receiver.ids:
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            details = await handle.query("__temporal_workflow_metadata")
            await handle.result()
            await temporal.start_delivery(order)
        history = await handle.fetch_history()
        await Replayer(workflows=WORKFLOWS).replay_workflow(history)
    assert "for try 2 of 10" in repr(details)
    assert await ended(sessions) == ("succeeded", True, [500, 200])
    assert len(receiver.ids) == 2
    assert SECRET.removeprefix("whsec_") not in history.to_json()
