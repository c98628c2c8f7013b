"""The sweep against a real Temporal: what a crash between two systems has left is put right."""

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from deployerp.activities import sweep as activities
from deployerp.activities.records import STEP_LEASE, Records
from deployerp.activities.sweep import Sweep
from deployerp.core.errors import Unavailable
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.operations.messages import EndpointOrder, OperationEnd, OperationOrder, SweepReport
from deployerp.domain.operations.operation import Operation, OperationStep
from deployerp.domain.operations.steps import StepRun
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint
from deployerp.drivers.temporal import Temporal, webhook_task_queue
from tests.conftest import Fleet, free_port, new_client, open_api

HOOKS = "https://example.com/hooks"


@dataclass
class Sweeper:
    """What the worker sweeps with, over rows that are old enough to be swept."""

    sessions: SessionFactory
    records: Records
    temporal: Temporal
    at_once: int = 500

    def __post_init__(self) -> None:
        self._sweep = Sweep(
            self.sessions, self.records, self.temporal, Settings.model_construct(), self.at_once
        )

    async def sweep(self) -> SweepReport:
        a_minute_ago = utc_now() - timedelta(minutes=1)
        async with self.sessions() as session, session.begin():
            await session.execute(update(Operation).values(updated_at=a_minute_ago))
            await session.execute(
                update(WebhookDelivery)
                .where(col(WebhookDelivery.state) == "pending")
                .values(next_attempt_at=a_minute_ago)
            )
        return await self._sweep.sweep()

    async def cancel_requests(self, workflow_id: str) -> int:
        history = await self.temporal.client.get_workflow_handle(workflow_id).fetch_history()
        kinds = [event.WhichOneof("attributes") for event in history.events]
        return kinds.count("workflow_execution_cancel_requested_event_attributes")


@pytest.fixture
async def sweeper(sessions: SessionFactory, records: Records, settings: Settings) -> Sweeper:
    return Sweeper(sessions, records, await Temporal.open(settings))


@pytest.fixture
async def offline(settings: Settings, records: Records) -> AsyncIterator[Fleet]:
    """A fleet whose API and worker do not reach Temporal."""
    without = settings.model_copy(update={"temporal_address": f"127.0.0.1:{free_port()}"})
    async with open_api(without, settled=False) as http:
        client = await new_client(http, without)
        yield Fleet(client, Records(records._sessions, await Temporal.open(without)))


async def order_of(fleet: Fleet, begun: dict) -> OperationOrder:
    return await fleet.order(begun["operation"]["id"])


async def state_of(fleet: Fleet, order: OperationOrder) -> tuple[str, str | None]:
    operation = await fleet.client.data("GET", f"/v1/operations/{order.operation_id}")
    return operation["state"], operation["errorCode"]


async def test_an_operation_that_was_never_started_is_started(offline: Fleet, sweeper: Sweeper) -> None:
    order = await order_of(offline, await offline.begin_server())
    assert await sweeper.temporal.run_state(order.workflow_id) == "absent"
    assert await sweeper.sweep() == SweepReport(started_operations=1)
    handle = sweeper.temporal.client.get_workflow_handle(order.workflow_id)
    description = await handle.describe()
    assert description.workflow_type == "ProvisionServer"
    assert description.task_queue == sweeper.temporal._task_queue
    assert await sweeper.sweep() == SweepReport()
    assert await state_of(offline, order) == ("pending", None)


async def test_one_that_was_cancelled_before_it_was_started_is_started_to_say_so(
    offline: Fleet, sweeper: Sweeper
) -> None:
    order = await order_of(offline, await offline.begin_server())
    await offline.client.call("POST", f"/v1/operations/{order.operation_id}/cancel")
    assert await sweeper.sweep() == SweepReport(started_operations=1)
    assert await sweeper.records.claim_operation(order) is False


@pytest.mark.fault("24")
async def test_a_row_that_cannot_be_swept_does_not_stop_the_others(
    offline: Fleet, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = await order_of(offline, await offline.begin_server("one"))
    await offline.begin_server("two")
    run_state = sweeper.temporal.run_state

    async def fail_on_broken(workflow_id: str) -> str:
        if workflow_id == broken.workflow_id:
            raise ValueError("this row is broken")
        return await run_state(workflow_id)

    monkeypatch.setattr(sweeper.temporal, "run_state", fail_on_broken)
    assert await sweeper.sweep() == SweepReport(started_operations=1)


@pytest.mark.fault("24")
async def test_an_endpoint_that_cannot_be_woken_stops_neither_the_others_nor_what_follows(
    offline: Fleet, sweeper: Sweeper, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await offline.client.call("POST", "/v1/webhook-endpoints", {"url": HOOKS})
    await offline.server()
    broken, sound = await endpoints(sessions)
    wake, forgotten = sweeper.temporal.wake_endpoint, []

    async def fail_on_broken(order: EndpointOrder, *, changed: bool = False) -> None:
        if broken.order == order:
            raise ValueError("this endpoint is broken")
        await wake(order, changed=changed)

    async def fail(*_: object) -> int:
        forgotten.append(True)
        raise ValueError("nothing can be forgotten")

    monkeypatch.setattr(sweeper.temporal, "wake_endpoint", fail_on_broken)
    monkeypatch.setattr(activities, "forget_expired", fail)
    assert await sweeper.sweep() == SweepReport(woken_endpoints=1)
    assert await sweeper.temporal.run_state(sound.order.workflow_id) == "running"
    assert forgotten


async def test_young_rows_are_left_to_who_wrote_them(offline: Fleet, sweeper: Sweeper) -> None:
    await offline.begin_server()
    assert await sweeper._sweep.sweep() == SweepReport()


@pytest.mark.parametrize("claimed", [False, True])
async def test_one_whose_workflow_was_terminated_is_closed(
    fleet: Fleet, sweeper: Sweeper, claimed: bool
) -> None:
    begun = await fleet.begin_server()
    order = await order_of(fleet, begun)
    if claimed:
        await sweeper.records.claim_operation(order)
    assert await sweeper.sweep() == SweepReport()
    await sweeper.temporal.terminate(order.workflow_id, "An operator did it.")
    assert await sweeper.sweep() == SweepReport(closed_operations=1)
    assert await state_of(fleet, order) == ("failed", "workflow_ended")
    server = await fleet.client.data("GET", f"/v1/servers/{begun['id']}")
    assert server["status"] == "failed"
    assert "retry" in server["statusMessage"]
    assert await sweeper.sweep() == SweepReport()
    await fleet.client.call("POST", f"/v1/operations/{order.operation_id}/retry", status=202)


async def test_one_whose_workflow_vanished_while_it_ran_is_closed(offline: Fleet, sweeper: Sweeper) -> None:
    order = await order_of(offline, await offline.begin_server())
    # A row that says that it was claimed, and a Temporal that has never heard of it.
    await sweeper.records.claim_operation(order)
    assert await sweeper.sweep() == SweepReport(closed_operations=1)
    assert await state_of(offline, order) == ("failed", "workflow_ended")


async def test_a_lost_cancellation_is_asked_for_again(
    fleet: Fleet, sweeper: Sweeper, sessions: SessionFactory
) -> None:
    order = await order_of(fleet, await fleet.begin_server())
    await sweeper.records.claim_operation(order)
    async with sessions() as session, session.begin():
        await session.execute(update(Operation).values(state="cancelling"))
    assert await sweeper.cancel_requests(order.workflow_id) == 0
    assert await sweeper.sweep() == SweepReport(cancelled_operations=1)
    assert await sweeper.cancel_requests(order.workflow_id) == 1
    # It may take long to undo what was made: asking each time must not fill its history.
    for _ in range(3):
        await sweeper.sweep()
    assert await sweeper.cancel_requests(order.workflow_id) == 1
    assert await state_of(fleet, order) == ("cancelling", None)


async def endpoints(sessions: SessionFactory) -> list[WebhookEndpoint]:
    async with sessions() as session:
        return list(await session.scalars(select(WebhookEndpoint).order_by(col(WebhookEndpoint.id))))


async def test_an_endpoint_that_was_never_woken_is_woken(
    offline: Fleet, sweeper: Sweeper, sessions: SessionFactory
) -> None:
    await offline.client.call("POST", "/v1/webhook-endpoints", {"url": HOOKS})
    await offline.server()
    [endpoint] = await endpoints(sessions)
    assert endpoint.awake
    workflow_id = endpoint.order.workflow_id
    assert await sweeper.temporal.run_state(workflow_id) == "absent"
    assert await sweeper.sweep() == SweepReport(woken_endpoints=1)
    assert await sweeper.temporal.run_state(workflow_id) == "running"
    description = await sweeper.temporal.client.get_workflow_handle(workflow_id).describe()
    assert description.workflow_type == "DeliverWebhooks"
    assert description.task_queue == webhook_task_queue(sweeper.temporal._task_queue)


@pytest.mark.parametrize("awake", [False, True])
async def test_an_endpoint_whose_workflow_was_terminated_gets_another(
    fleet: Fleet, sweeper: Sweeper, sessions: SessionFactory, awake: bool
) -> None:
    await fleet.client.call("POST", "/v1/webhook-endpoints", {"url": HOOKS})
    await fleet.server()
    [endpoint] = await endpoints(sessions)
    await sweeper.temporal.terminate(endpoint.order.workflow_id, "An operator did it.")
    async with sessions() as session, session.begin():
        await session.execute(update(WebhookEndpoint).values(awake=awake))
    assert await sweeper.temporal.run_state(endpoint.order.workflow_id) == "ended"
    assert await sweeper.sweep() == SweepReport(woken_endpoints=1)
    assert await sweeper.temporal.run_state(endpoint.order.workflow_id) == "running"


@pytest.mark.parametrize(
    "facts",
    [
        {"next_attempt_at": utc_now() + timedelta(hours=1)},
        {"state": "succeeded", "next_attempt_at": None},
        {"state": "failed", "next_attempt_at": None},
    ],
)
async def test_an_endpoint_for_which_nothing_is_overdue_is_left_alone(
    offline: Fleet, sweeper: Sweeper, sessions: SessionFactory, facts: dict
) -> None:
    await offline.client.call("POST", "/v1/webhook-endpoints", {"url": HOOKS})
    await offline.server()
    # What has just become due is in the hands of whoever wrote it.
    assert await sweeper._sweep.sweep() == SweepReport()
    async with sessions() as session, session.begin():
        await session.execute(update(WebhookDelivery).values(facts))
    assert await sweeper._sweep.sweep() == SweepReport()


@pytest.mark.fault("15")
async def test_an_endpoint_that_stays_overdue_is_not_woken_by_every_sweep(
    offline: Fleet, sweeper: Sweeper, sessions: SessionFactory
) -> None:
    await offline.client.call("POST", "/v1/webhook-endpoints", {"url": HOOKS})
    await offline.server()
    assert [(await sweeper.sweep()).woken_endpoints for _ in range(3)] == [1, 0, 0]
    # One that was served meanwhile is woken at once, should it be overdue again.
    async with sessions() as session, session.begin():
        await session.execute(update(WebhookDelivery).values(state="succeeded"))
    assert (await sweeper.sweep()).woken_endpoints == 0
    async with sessions() as session, session.begin():
        await session.execute(update(WebhookDelivery).values(state="pending"))
    assert (await sweeper.sweep()).woken_endpoints == 1


@pytest.mark.fault("24")
async def test_an_endpoint_whose_change_was_not_told_hears_of_it(
    offline: Fleet, sweeper: Sweeper, sessions: SessionFactory
) -> None:
    created = await offline.client.data("POST", "/v1/webhook-endpoints", {"url": HOOKS})
    await offline.server()
    assert (await sweeper.sweep()).woken_endpoints == 1
    async with sessions() as session, session.begin():
        await session.execute(update(WebhookEndpoint).values(failing_since=utc_now()))
    await offline.client.data("PATCH", f"/v1/webhook-endpoints/{created['id']}", {"url": f"{HOOKS}/right"})
    assert (await sweeper.sweep()).woken_endpoints == 1
    [endpoint] = await endpoints(sessions)
    handle = sweeper.temporal.client.get_workflow_handle(endpoint.order.workflow_id)
    signals = [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in (await handle.fetch_history()).events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]
    assert signals == ["wake", "changed"]


async def test_a_sweep_wakes_so_many_and_the_next_goes_on(
    offline: Fleet, sweeper: Sweeper, sessions: SessionFactory
) -> None:
    for _ in range(5):
        await offline.client.call("POST", "/v1/webhook-endpoints", {"url": HOOKS})
    await offline.server()
    bounded = dataclasses.replace(sweeper, at_once=2)
    woken = [(await bounded.sweep()).woken_endpoints for _ in range(4)]
    assert woken == [2, 2, 1, 2]
    for endpoint in await endpoints(sessions):
        assert await sweeper.temporal.run_state(endpoint.order.workflow_id) == "running"


async def test_a_sweep_looks_at_so_many_and_the_next_goes_on(
    fleet: Fleet, sweeper: Sweeper, sessions: SessionFactory
) -> None:
    provider = await fleet.provider()
    orders = [await order_of(fleet, await fleet.begin_server(f"s{n}", provider["id"])) for n in range(5)]
    bounded = dataclasses.replace(sweeper, at_once=2)
    # The first four run and stay open: they must not keep the fifth from its turn.
    await sweeper.temporal.terminate(orders[-1].workflow_id, "An operator did it.")
    assert await bounded.sweep() == SweepReport()
    assert await bounded.sweep() == SweepReport()
    assert await bounded.sweep() == SweepReport(closed_operations=1)
    await sweeper.temporal.terminate(orders[0].workflow_id, "An operator did it.")
    assert await bounded.sweep() == SweepReport(closed_operations=1)
    states = [await state_of(fleet, order) for order in orders]
    assert [state for state, _ in states] == ["failed", "pending", "pending", "pending", "failed"]


async def test_nothing_is_closed_while_temporal_does_not_answer(
    fleet: Fleet, sweeper: Sweeper, settings: Settings
) -> None:
    order = await order_of(fleet, await fleet.begin_server())
    await sweeper.records.claim_operation(order)
    without = settings.model_copy(update={"temporal_address": f"127.0.0.1:{free_port()}"})
    blind = dataclasses.replace(sweeper, temporal=await Temporal.open(without))
    with pytest.raises(Unavailable):
        await blind.sweep()
    assert await state_of(fleet, order) == ("running", None)
    assert await sweeper.sweep() == SweepReport()


async def test_one_that_ends_while_temporal_is_asked_keeps_its_own_end(
    fleet: Fleet, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = await fleet.begin_server()
    order = await order_of(fleet, begun)
    ask = sweeper.temporal.run_state

    async def ends_first(workflow_id: str) -> str:
        await fleet.end(begun)
        await sweeper.temporal.terminate(workflow_id, "It has ended.")
        return await ask(workflow_id)

    monkeypatch.setattr(sweeper.temporal, "run_state", ends_first)
    assert await sweeper.sweep() == SweepReport()
    assert await state_of(fleet, order) == ("succeeded", None)
    assert (await fleet.client.data("GET", f"/v1/servers/{begun['id']}"))["status"] == "running"


async def test_steps_of_closed_operations_whose_worker_is_lost_are_ended(
    fleet: Fleet, records: Records, sessions: SessionFactory, sweeper: Sweeper
) -> None:
    names = ("lost", "alive", "open")
    ids = {name: (await fleet.begin_server(name))["operation"]["id"] for name in names}
    for operation_id in ids.values():
        await records.begin_step(StepRun(operation_id, "create_node"))
    for name in ("lost", "alive"):
        await records.end_operation(OperationEnd(await fleet.order(ids[name]), "cancelled"))
    async with sessions() as session, session.begin():
        old = col(OperationStep.operation_id).in_([UUID(ids["lost"]), UUID(ids["open"])])
        await session.execute(update(OperationStep).where(old).values(updated_at=utc_now() - 2 * STEP_LEASE))
    assert (await sweeper._sweep.sweep()).ended_steps == 1

    async def steps(name: str) -> list[tuple[str, str | None]]:
        found = (await fleet.client.data("GET", f"/v1/operations/{ids[name]}"))["steps"]
        return [(step["state"], step["detail"]) for step in found]

    assert await steps("lost") == [("failed", "Its worker was lost.")]
    assert await steps("alive") == await steps("open") == [("running", None)]
