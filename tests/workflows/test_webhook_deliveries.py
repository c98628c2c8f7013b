"""Everything that is sent to an endpoint: days on the server that skips time, the rest on a real one."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from temporalio import activity, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Replayer, Worker

from deployerp.activities.records import Records
from deployerp.activities.steps.interceptor import ActivityInterceptor
from deployerp.activities.webhooks import breaker, deliveries
from deployerp.activities.webhooks.deliveries import WebhookActivities
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory, open_database, session_factory
from deployerp.domain.operations.messages import EndpointOrder, TurnResult, queue_for
from deployerp.domain.tables import metadata
from deployerp.drivers.temporal import Temporal, webhook_task_queue
from deployerp.drivers.web.http import WebhookSender
from deployerp.workflows.webhook_deliveries import MOST_EVENTS, WORKFLOWS, DeliverWebhooks
from tests.skipping import skipping_environment
from tests.webhooks import SECRET, VAULT, House, Receiver, always, receiving, statuses
from tests.workflows.stand_ins import StandIns, gives, time_skipping_server, until, working

SETTINGS = Settings.model_construct()
DELAYS = SETTINGS.webhook_retry_seconds
ORDER = EndpointOrder(str(uuid4()), str(uuid4()))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn ends at once when nothing is due."""
    monkeypatch.setattr(deliveries, "_PAUSES", (0.01,))


@pytest.fixture(scope="module")
async def skipping() -> AsyncIterator[Client]:
    async with await skipping_environment(time_skipping_server()) as environment:
        yield environment.client


@pytest.fixture
async def client(temporal_address: str) -> Client:
    return await Client.connect(temporal_address)


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[SessionFactory]:
    engine = open_database(f"sqlite+aiosqlite:///{tmp_path / 'deployerp.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield session_factory(engine)
    await engine.dispose()


@pytest.fixture
async def house(sessions: SessionFactory) -> House:
    return await House(sessions).found()


@pytest.fixture
def queue() -> str:
    return f"queue-{uuid4()}"


@asynccontextmanager
async def worker(
    client: Client, sessions: Any, queue: str, *, timeout: float = 5, **changed: Any
) -> AsyncIterator[None]:
    temporal = Temporal(client, queue)
    sender = WebhookSender([IPv4Network("127.0.0.1/32")], timeout)
    activities = WebhookActivities(sessions, VAULT, sender, temporal, SETTINGS.model_copy(update=changed))
    healthy, failing = (
        Worker(
            client,
            task_queue=webhook_task_queue(queue, failing=failing),
            workflows=WORKFLOWS,
            activities=[activities.send_due],
            interceptors=[ActivityInterceptor(Records(sessions, temporal))],
        )
        for failing in (False, True)
    )
    async with healthy, failing:
        yield


async def deliver(
    client: Client, sessions: Any, order: EndpointOrder, **options: Any
) -> WorkflowHandle[Any, Any]:
    """Carries out what waits for an endpoint, until nothing does."""
    queue = f"queue-{uuid4()}"
    async with worker(client, sessions, queue, **options):
        handle = await client.start_workflow(
            DeliverWebhooks.run, args=(order, 0, None), id=queue, task_queue=webhook_task_queue(queue)
        )
        await handle.result()
    return handle


async def pauses(client: Client, handle: WorkflowHandle[Any, Any]) -> list[float]:
    """Seconds, of all runs."""
    return [
        event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta().total_seconds()
        for event in await events(client, handle)
        if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED
    ]


async def events(client: Client, handle: WorkflowHandle[Any, Any]) -> list[HistoryEvent]:
    """Of all runs of a workflow, from the last one's beginning back to the first."""
    found: list[HistoryEvent] = []
    run_id: str | None = None
    while run_id != "":
        run = client.get_workflow_handle(handle.id, run_id=run_id)
        history = (await run.fetch_history()).events
        found[:0] = history
        run_id = history[0].workflow_execution_started_event_attributes.continued_execution_run_id
    return found


async def end_of(house: House) -> tuple[str, list[int | None]]:
    """The state of the only delivery, and the status of each of its attempts."""
    [delivery] = await house.deliveries()
    attempts = await house.attempts(delivery)
    assert [each.number for each in attempts] == list(range(1, delivery.attempts + 1))
    return delivery.state, [each.status_code for each in attempts]


# Three days


async def test_the_first_try_may_be_the_last(skipping: Client, house: House) -> None:
    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        handle = await deliver(skipping, house.sessions, order)
    assert await end_of(house) == ("succeeded", [200])
    assert await pauses(skipping, handle) == []


async def test_it_gives_up_after_ten_tries_and_three_days(skipping: Client, house: House) -> None:
    async with receiving(always(503)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        handle = await deliver(skipping, house.sessions, order)
    assert await end_of(house) == ("failed", [503] * 10)
    assert receiver.ids == [receiver.ids[0]] * 10
    assert (await house.endpoint(order)).enabled
    assert timedelta(days=2.7) < await lasted(skipping, handle) < timedelta(days=3.4)
    waited = await pauses(skipping, handle)
    assert len(waited) == len(DELAYS)
    # A turn takes its time, and the rest is what is left.
    shares = [pause / delay for pause, delay in zip(waited[1:], DELAYS[1:], strict=True)]
    assert all(0.85 <= share <= 1.1 for share in shares)
    assert max(shares) - min(shares) > 0.001


async def test_retry_after_is_waited_for_when_it_is_longer(skipping: Client, house: House) -> None:
    def respond(number: int) -> web.Response:
        wait = {1: "7200", 2: "1"}.get(number)
        return web.Response(status=429, headers={"Retry-After": wait}) if wait else web.Response()

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        handle = await deliver(skipping, house.sessions, order)
    assert await end_of(house) == ("succeeded", [429, 429, 200])
    asked, planned = await pauses(skipping, handle)
    assert 7190 < asked <= 7200
    assert 25 < planned <= 33


@pytest.mark.parametrize(("status", "attempts"), [(307, [307, 200]), (500, [500, 200])])
async def test_what_fails_is_tried_again(
    skipping: Client, house: House, status: int, attempts: list[int]
) -> None:
    async with receiving(statuses(status, 200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await deliver(skipping, house.sessions, order)
    assert await end_of(house) == ("succeeded", attempts)


async def test_a_receiver_that_stalls_is_tried_again(skipping: Client, house: House) -> None:
    async with receiving(lambda n: 60.0 if n == 1 else web.Response()) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await deliver(skipping, house.sessions, order, timeout=0.3)
    assert await end_of(house) == ("succeeded", [None, 200])


async def test_410_ends_it_at_once(skipping: Client, house: House) -> None:
    async with receiving(always(410)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        handle = await deliver(skipping, house.sessions, order)
    assert await end_of(house) == ("failed", [410])
    assert not (await house.endpoint(order)).enabled
    assert await pauses(skipping, handle) == []


async def test_an_endpoint_that_is_deleted_on_the_way_ends_it(skipping: Client, house: House) -> None:
    deleting: list[asyncio.Task[None]] = []

    async def delete() -> None:
        endpoint = await house.endpoint(order)
        await house.change(endpoint, deleted_at=endpoint.created_at)

    def respond(_: int) -> web.Response:
        deleting.append(asyncio.create_task(delete()))
        return web.Response(status=500)

    async with receiving(respond) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await deliver(skipping, house.sessions, order)
    assert await end_of(house) == ("failed", [500])
    assert len(receiver.requests) == 1


async def test_a_receiver_that_is_down_for_five_days_is_disabled(skipping: Client, house: House) -> None:
    # More than three days need more than one delivery: each gives up before.
    async with receiving(always(500)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(3)
        handle = await deliver(skipping, house.sessions, order, webhook_retry_seconds=[100_000] * 9)
    endpoint = await house.endpoint(order)
    assert (endpoint.enabled, endpoint.disabled_reason) == (False, "Nothing was accepted for 5 days.")
    assert {each.state for each in await house.deliveries(order)} == {"failed"}
    assert timedelta(days=5) < await lasted(skipping, handle) < timedelta(days=7)


async def lasted(client: Client, handle: WorkflowHandle[Any, Any]) -> timedelta:
    """The time of all runs of a workflow, from the beginning of the first to the end of the last."""
    times = [event.event_time.ToDatetime() for event in await events(client, handle)]
    return times[-1] - times[0]


async def test_a_receiver_that_comes_back_gets_everything(skipping: Client, house: House) -> None:
    """It is down for its first 20 requests; the breaker spares the tries of the rest."""
    async with receiving(lambda n: web.Response(status=503 if n <= 20 else 200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen(200)
        handle = await deliver(skipping, house.sessions, order, webhook_concurrency=5)
    assert {each.state for each in await house.deliveries()} == {"succeeded"}
    assert len(receiver.requests) == 220
    # It opened at the tenth failure or a little later, and then there was a probe at a time.
    assert 7 <= len([pause for pause in await pauses(skipping, handle) if pause >= 4.4]) <= 30


async def test_a_database_that_fails_for_a_time_costs_no_try(skipping: Client, house: House) -> None:
    failures = iter([ConnectionError("no database")] * 3)

    def failing_sessions() -> Any:
        failure = next(failures, None)
        if failure:
            raise failure
        return house.sessions()

    async with receiving(always(200)) as receiver:
        order = await house.listen(receiver.url)
        await house.happen()
        await deliver(skipping, failing_sessions, order)
    assert await end_of(house) == ("succeeded", [200])


async def test_an_unknown_endpoint_fails_the_workflow_at_once(skipping: Client, house: House) -> None:
    with pytest.raises(WorkflowFailureError) as caught:
        await deliver(skipping, house.sessions, ORDER)
    assert isinstance(caught.value.cause, ActivityError)
    assert isinstance(caught.value.cause.cause, ApplicationError)
    assert caught.value.cause.cause.type == "not_found"


# Turns, rests and signals


@asynccontextmanager
async def delivering(
    client: Client, stand_ins: StandIns, queue: str, workflows: Any = WORKFLOWS, **options: Any
) -> AsyncIterator[WorkflowHandle[Any, Any]]:
    async with working(client, stand_ins, queue, workflows):
        yield await client.start_workflow("DeliverWebhooks", id=queue, task_queue=queue, **options)


async def until_calls(stand_ins: StandIns, number: int) -> None:
    while len(stand_ins.calls) < number:
        await asyncio.sleep(0.02)


async def details(handle: WorkflowHandle[Any, Any]) -> str:
    return repr(await handle.query("__temporal_workflow_metadata"))


async def until_it_rests(client: Client, handle: WorkflowHandle[Any, Any]) -> None:
    while not await pauses(client, handle):
        await asyncio.sleep(0.02)


async def test_a_turn_that_has_left_something_is_followed_by_another(client: Client, queue: str) -> None:
    stand_ins = StandIns({"send_due": gives(TurnResult(0, 0), TurnResult(0, 0), TurnResult(0, None))})
    async with delivering(client, stand_ins, queue, args=(ORDER, 0, None)) as handle:
        await handle.result()
    assert stand_ins.calls == ["send_due"] * 3
    assert await pauses(client, handle) == []


async def test_a_rest_ends_by_itself(client: Client, queue: str) -> None:
    stand_ins = StandIns({"send_due": gives(TurnResult(0, 0.5), TurnResult(0, None))})
    async with delivering(client, stand_ins, queue, args=(ORDER, 0, None)) as handle:
        await handle.result()
    assert stand_ins.calls == ["send_due"] * 2
    assert await pauses(client, handle) == [0.5]


async def test_to_be_woken_ends_a_rest(client: Client, queue: str) -> None:
    stand_ins = StandIns({"send_due": gives(TurnResult(0, 3600), TurnResult(0, None))})
    async with delivering(client, stand_ins, queue, args=(ORDER, 0, None)) as handle:
        await until_it_rests(client, handle)
        assert "Nothing is due before" in await details(handle)
        await handle.signal("wake")
        await handle.result()
    assert stand_ins.calls == ["send_due"] * 2


async def test_to_be_woken_does_not_end_a_pause(client: Client, queue: str) -> None:
    stand_ins = StandIns({"send_due": gives(TurnResult(10, 3, paused=True), TurnResult(0, None))})
    async with delivering(client, stand_ins, queue, args=(ORDER, 0, None)) as handle:
        await until_it_rests(client, handle)
        await handle.signal("wake")
        assert "10 tries in a row have failed: left alone until" in await details(handle)
        assert stand_ins.calls == ["send_due"]
        await handle.result()
    assert stand_ins.calls == ["send_due"] * 2
    kinds = [event.event_type for event in await events(client, handle)]
    assert EventType.EVENT_TYPE_TIMER_FIRED in kinds


@pytest.mark.fault("24")
@pytest.mark.parametrize("paused", [True, False])
async def test_a_change_ends_a_pause_and_begins_anew_among_those_that_work(
    client: Client, queue: str, paused: bool
) -> None:
    stand_ins = StandIns({"send_due": gives(TurnResult(10, 3600, paused=paused), TurnResult(0, None))})
    async with delivering(client, stand_ins, queue, args=(ORDER, 0, None)) as handle:
        await until_it_rests(client, handle)
        assert (await handle.describe()).task_queue == queue_for(queue, failing=True)
        await handle.signal("changed")
        await handle.result()
        assert (await handle.describe()).task_queue == queue
    assert stand_ins.calls == ["send_due"] * 2
    history = (await handle.fetch_history()).events
    order, failures, rest = await client.data_converter.decode(
        history[0].workflow_execution_started_event_attributes.input.payloads
    )
    assert (order["failing"], failures, rest) == (False, 0, None)


@pytest.mark.fault("24")
async def test_a_change_during_a_turn_is_a_reason_for_another(client: Client, queue: str) -> None:
    ended = asyncio.Event()
    results = [TurnResult(10, 3600, paused=True), TurnResult(0, None)]

    async def send_due(number: int) -> TurnResult:
        await ended.wait()
        return results[number - 1]

    stand_ins = StandIns({"send_due": send_due})
    async with delivering(client, stand_ins, queue, args=(ORDER, 0, None)) as handle:
        await stand_ins.reached("send_due")
        await handle.signal("changed")
        ended.set()
        await handle.result()
    assert stand_ins.calls == ["send_due"] * 2
    assert await pauses(client, handle) == []


@pytest.mark.fault("15")
async def test_it_rests_among_those_that_fail_until_its_receiver_takes_something(
    client: Client, queue: str
) -> None:
    results = [TurnResult(1, 0.1), TurnResult(2, 0.1), TurnResult(0, 0.1), TurnResult(0, None)]
    queues: list[str] = []

    async def send_due(number: int) -> TurnResult:
        queues.append(activity.info().task_queue)
        return results[number - 1]

    async with delivering(client, StandIns({"send_due": send_due}), queue, args=(ORDER, 0, None)) as handle:
        await handle.result()
    failing = queue_for(queue, failing=True)
    assert queues == [queue, failing, failing, queue]
    assert await pauses(client, handle) == [0.1] * 3


async def test_to_be_woken_during_a_turn_is_a_reason_for_another(client: Client, queue: str) -> None:
    ended = asyncio.Event()
    stand_ins = StandIns({"send_due": until(ended, result=TurnResult(0, None))})
    async with delivering(client, stand_ins, queue, args=(ORDER, 0, None)) as handle:
        await stand_ins.reached("send_due")
        await handle.signal("wake")
        await asyncio.sleep(0.3)
        ended.set()
        await handle.result()
    assert stand_ins.calls == ["send_due"] * 2


_at_its_end = threading.Event()
_signalled = threading.Event()


@workflow.defn(name="DeliverWebhooks", sandboxed=False)
class DeliverWebhooksThatIsSlowToEnd(DeliverWebhooks):
    """Has decided to end, and has not told the server yet."""

    @workflow.run
    async def run(self, order: EndpointOrder, failures: int, rest: TurnResult | None) -> None:
        await super().run(order, failures, rest)
        if not workflow.unsafe.is_replaying():
            _at_its_end.set()
            _signalled.wait(1.5)


async def test_a_signal_that_comes_while_it_ends_is_not_lost(client: Client, queue: str) -> None:
    _at_its_end.clear()
    _signalled.clear()
    stand_ins = StandIns({"send_due": gives(TurnResult(0, None))})
    slow = [DeliverWebhooksThatIsSlowToEnd]
    async with delivering(client, stand_ins, queue, slow, args=(ORDER, 0, None)) as handle:
        assert await asyncio.to_thread(_at_its_end.wait, 30)
        assert stand_ins.calls == ["send_due"]
        await handle.signal("wake")
        _signalled.set()
        await handle.result()
    assert stand_ins.calls == ["send_due"] * 2
    kinds = [event.event_type async for event in handle.fetch_history_events()]
    # The server has not let it end.
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED in kinds


@pytest.mark.fault("15")
async def test_a_new_run_goes_on_with_the_failures_of_the_last(client: Client, queue: str) -> None:
    turns = 50
    results = [TurnResult(number, 0) for number in range(1, turns + 1)]
    stand_ins = StandIns({"send_due": gives(*results, TurnResult(0, None))})
    async with delivering(client, stand_ins, queue, args=(ORDER, 0, None)) as handle:
        first = client.get_workflow_handle(queue, run_id=(await handle.describe()).run_id)
        await handle.result()
    assert len(stand_ins.calls) == turns + 1
    history = await first.fetch_history()
    assert MOST_EVENTS <= len(history.events) < MOST_EVENTS + 15
    done = sum(event.HasField("activity_task_completed_event_attributes") for event in history.events)
    ended = history.events[-1].workflow_execution_continued_as_new_event_attributes
    _, failures, _ = await client.data_converter.decode(ended.input.payloads)
    assert failures == done


# On a real server, with everything


async def test_an_operator_sees_what_it_does_and_its_history_has_no_secret(
    client: Client, house: House, queue: str
) -> None:
    temporal = Temporal(client, queue)
    async with receiving(statuses(500, 200)) as receiver:
        order = await house.listen(receiver.url)
        handle = client.get_workflow_handle(order.workflow_id)
        async with worker(client, house.sessions, queue, webhook_retry_seconds=[4]):
            await temporal.wake_endpoints(await house.happen())
            await until_it_rests(client, handle)
            assert "Nothing is due before" in await details(handle)
            await handle.result()
            await temporal.wake_endpoints(await house.happen())
            while len(receiver.requests) < 3:
                await asyncio.sleep(0.02)
            await handle.result()
        description = await handle.describe()
        assert await description.static_summary() == f"Deliver to endpoint {order.endpoint_id}"
        history = await handle.fetch_history()
        await Replayer(workflows=WORKFLOWS).replay_workflow(history)
    assert len(set(receiver.ids)) == 2
    assert SECRET.removeprefix("whsec_") not in history.to_json()
    assert receiver.url not in history.to_json()


@pytest.mark.fault("24")
async def test_a_corrected_url_is_tried_at_once_although_its_receiver_was_left_alone(
    client: Client, house: House, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "_PAUSES", (36_000,))
    temporal = Temporal(client, queue)
    async with receiving(always(500)) as wrong, receiving(always(200)) as right:
        order = await house.listen(wrong.url)
        handle = client.get_workflow_handle(order.workflow_id)
        async with worker(client, house.sessions, queue, webhook_concurrency=1):
            await temporal.wake_endpoints(await house.happen(12))
            await until_it_rests(client, handle)
            endpoint = await house.endpoint(order)
            await house.change(endpoint, url=right.url, unseen_change=True)
            await temporal.offer_change(endpoint.order)
            while len(right.requests) < 2:
                await asyncio.sleep(0.02)
            # Those that have been tried wait for their next time, as all others do.
            endpoint = await house.endpoint(order)
            await temporal.terminate(order.workflow_id, "The test is over.")
    assert (len(wrong.requests), endpoint.unseen_change, endpoint.failing_since) == (10, False, None)


async def test_one_slow_endpoint_does_not_delay_another(client: Client, house: House, queue: str) -> None:
    finished = asyncio.Event()
    order_of_ends: list[str] = []

    async def answer_last(request: web.Request) -> web.Response:
        await finished.wait()
        order_of_ends.append("slow")
        return web.Response()

    def answer(number: int) -> web.Response:
        order_of_ends.append("fast")
        if number == 100:
            finished.set()
        return web.Response()

    async with stalling(answer_last) as slow, receiving(answer) as fast:
        # If one waited for the other, neither would ever end: the slow one answers after the fast one's last.
        await house.listen(slow.url)
        await house.listen(fast.url)
        woken = await house.happen(100)
        async with worker(client, house.sessions, queue, timeout=60):
            await Temporal(client, queue).wake_endpoints(woken)
            while len(order_of_ends) < 200:
                await asyncio.sleep(0.02)
            for order in woken:
                await client.get_workflow_handle(order.workflow_id).result()
    assert order_of_ends == ["fast"] * 100 + ["slow"] * 100
    assert {each.state for each in await house.deliveries()} == {"succeeded"}


@asynccontextmanager
async def stalling(handle: Any) -> AsyncIterator[Receiver]:
    application = web.Application()
    application.router.add_post("/hook", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Receiver(f"http://127.0.0.1:{runner.addresses[0][1]}/hook")
    await runner.cleanup()


async def test_a_worker_that_stops_in_the_middle_of_a_turn_loses_nothing(
    client: Client, house: House, queue: str
) -> None:
    async with receiving(lambda _: 0.02) as receiver:
        order = await house.listen(receiver.url)
        woken = await house.happen(300)
        async with worker(client, house.sessions, queue, webhook_concurrency=2):
            await Temporal(client, queue).wake_endpoints(woken)
            while len(receiver.requests) < 20:
                await asyncio.sleep(0.01)
        assert len(receiver.requests) < 300
        async with worker(client, house.sessions, queue):
            handle = client.get_workflow_handle(order.workflow_id)
            await handle.result()
    assert set(receiver.ids) == {f"evt_{each.event_id.hex}" for each in await house.deliveries()}
    assert {each.state for each in await house.deliveries()} == {"succeeded"}
    assert (await handle.describe()).status == WorkflowExecutionStatus.COMPLETED
