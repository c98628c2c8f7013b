"""A worker that starts among many endpoints which fail: those that work must not wait for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import distinct, func, select
from sqlmodel import col
from temporalio import activity
from temporalio.client import Client

from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.operations.messages import EndpointOrder, TurnResult
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.drivers.temporal import Temporal, webhook_task_queue
from deployerp.embedded.control_plane import environment_of
from deployerp.workflows.webhook_deliveries import DeliverWebhooks
from tests.conftest import free_port
from tests.webhooks import House, Receiver, receiving, statuses
from tests.workflows.stand_ins import StandIns, working
from tests.workflows.test_webhook_proof import process

FAILING, DUE, TURNS_BEFORE, GOOD_EVENTS = 200, 20, 4, 5
# Of those that fail: fewer have had their turn when the good endpoint is served.
FEW = FAILING // 2


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """The one that many read at once."""
    return postgres_url


@pytest.mark.fault("15")
async def test_a_good_endpoint_is_served_before_many_that_fail(
    settings: Settings, sessions: SessionFactory
) -> None:
    temporal, vault = await Temporal.open(settings, lazy=False), Vault(settings.encryption_keys)
    bad, good = await House(sessions, vault).found(), await House(sessions, vault).found()
    nowhere = f"http://127.0.0.1:{free_port()}/hook"
    # Found to fail by the worker before.
    failing = [await bad.listen(nowhere, failing_since=utc_now()) for _ in range(FAILING)]
    await bad.happen(DUE)
    await grow_histories(temporal.client, settings, failing)
    # As the sweep does, and whoever writes an event: each has something to do when the worker starts.
    await temporal.wake_endpoints(failing)
    async with receiving(statuses(200)) as receiver:
        await good.listen(receiver.url)
        # The last in the queue.
        await temporal.wake_endpoints(await good.happen())
        async with starting_worker(settings), asyncio.timeout(120):
            await until_served(receiver, 1)
            assert await count_tried(sessions) < FEW
            for number in range(2, GOOD_EVENTS + 1):
                await temporal.wake_endpoints(await good.happen())
                await until_served(receiver, number)
            # And they are still worked through.
            while await count_tried(sessions) < FEW:
                await asyncio.sleep(0.1)


async def until_served(receiver: Receiver, number: int) -> None:
    while len(receiver.requests) < number:
        await asyncio.sleep(0.02)


async def count_tried(sessions: SessionFactory) -> int:
    """Endpoints whose receivers have failed a try."""
    tried = select(func.count(distinct(col(WebhookDelivery.endpoint_id)))).where(
        col(WebhookDelivery.attempts) > 0, col(WebhookDelivery.state) == "pending"
    )
    async with sessions() as session:
        return await session.scalar(tried) or 0


@asynccontextmanager
async def starting_worker(settings: Settings) -> AsyncIterator[None]:
    """A worker process, from the moment in which it begins to work."""
    log: Path = settings.home / "worker.log"
    async with process(log, "-m", "deployerp.cli", "worker", **environment_of(settings)) as running:
        while b"worker runs" not in (told := await asyncio.to_thread(log.read_bytes)):
            assert running.returncode is None, told
            await asyncio.sleep(0.02)
        yield


async def grow_histories(client: Client, settings: Settings, orders: list[EndpointOrder]) -> None:
    """Takes these endpoints through many turns, after which they rest."""
    turns = dict.fromkeys((order.endpoint_id for order in orders), 0)

    async def send_due(_: int) -> TurnResult:
        endpoint_id = activity.info().workflow_id.removeprefix("webhooks-")
        turns[endpoint_id] += 1
        return TurnResult(turns[endpoint_id], wait=0 if turns[endpoint_id] < TURNS_BEFORE else 3600)

    queue = webhook_task_queue(settings.temporal_task_queue)
    async with working(client, StandIns({"send_due": send_due}), queue, [DeliverWebhooks]):
        await Temporal(client, settings.temporal_task_queue).wake_endpoints(orders)
        async with asyncio.timeout(240):
            while min(turns.values()) < TURNS_BEFORE:
                await asyncio.sleep(0.1)
