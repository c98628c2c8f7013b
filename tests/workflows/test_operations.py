"""How operations run on a real Temporal: the real workflows and interceptor, with stand-ins for steps."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle

from deployerp.activities.instances import InstanceActivities
from deployerp.activities.servers import ServerActivities
from deployerp.activities.steps import interceptor
from deployerp.core.errors import EngineError, ImageUnavailable, ProviderRefused, ProviderThrottled
from deployerp.domain.operations.messages import OperationEnd, OperationOrder
from deployerp.domain.operations.stateful import action_of
from deployerp.domain.operations.steps import STEPS
from deployerp.domain.tables import lifecycles
from deployerp.worker import WORKFLOWS
from deployerp.workflows.run import OperationRun, run_operation
from tests.skipping import skipping_environment
from tests.workflows.stand_ins import (
    REAL,
    StandIns,
    fails,
    gives,
    order_for,
    time_skipping_server,
    until,
    until_cancelled,
    working,
)

PROVISION = order_for("server", "provision")
DEPLOY = order_for("instance", "deploy")
SECRET = "correct-horse-battery-staple"

# What an operator sees, in this order.
STEPS_OF: dict[tuple[str, str], list[str]] = {
    ("server", "provision"): [
        "prepare_keys", "create_node", "wait_for_node", "wait_for_ssh", "prepare_host", "check_engine",
        "start_caddy",
    ],
    ("server", "start"): [
        "start_node", "wait_for_node", "wait_for_ssh", "check_engine", "start_caddy", "start_instances",
    ],
    ("server", "stop"): ["stop_instances", "stop_node"],
    ("server", "restart"): [
        "stop_instances", "reboot_node", "wait_for_node", "wait_for_ssh", "check_engine", "start_caddy",
        "start_instances",
    ],
    ("server", "delete"): ["destroy_node"],
    ("instance", "deploy"): [
        "pull_images", "prepare_database", "create_network", "create_volumes", "start_postgres",
        "personalise_database", "start_odoo", "wait_for_odoo", "create_route", "check_login",
    ],
    ("instance", "start"): [
        "pull_images", "start_postgres", "start_odoo", "wait_for_odoo", "create_route", "check_login",
    ],
    ("instance", "stop"): ["stop_containers"],
    ("instance", "restart"): [
        "pull_images", "stop_containers", "start_postgres", "start_odoo", "wait_for_odoo", "create_route",
        "check_login",
    ],
    ("instance", "delete"): ["remove_instance"],
}  # fmt: skip
UNDO_OF = {
    ("server", "provision"): "destroy_node",
    ("server", "stop"): "start_stopped_instances",
    ("server", "restart"): "start_stopped_instances",
    ("instance", "deploy"): "remove_instance",
}
# A failure before this step has nothing to undo.
FIRST_UNDONE = {
    ("server", "provision"): "create_node",
    ("server", "stop"): "stop_instances",
    ("server", "restart"): "stop_instances",
    ("instance", "deploy"): "prepare_database",
}


@pytest.fixture(scope="module")
async def client(temporal_address: str) -> Client:
    return await Client.connect(temporal_address)


@pytest.fixture(scope="module")
async def skipping() -> AsyncIterator[Client]:
    """A server that waits for no timer, for what is tried again."""
    path = time_skipping_server()
    async with await skipping_environment(path) as environment:
        yield environment.client


async def begin(client: Client, order: OperationOrder, queue: str) -> WorkflowHandle:
    name = action_of(order.resource_type, order.action).workflow
    return await client.start_workflow(name, order, id=f"{order.workflow_id}-{uuid4()}", task_queue=queue)


async def ended(handle: WorkflowHandle) -> WorkflowExecutionStatus:
    """How the workflow closed, once it has."""
    with contextlib.suppress(WorkflowFailureError):
        await asyncio.wait_for(handle.result(), 60)
    status = (await handle.describe()).status
    assert status is not None
    return status


async def run(client: Client, order: OperationOrder, stand_ins: StandIns) -> WorkflowExecutionStatus:
    queue = f"operations-{uuid4()}"
    async with working(client, stand_ins, queue):
        return await ended(await begin(client, order, queue))


async def run_and_cancel(
    client: Client,
    order: OperationOrder,
    stand_ins: StandIns,
    during: str,
    *,
    times: int = 1,
    cancelled: asyncio.Event | None = None,
) -> WorkflowExecutionStatus:
    """Cancels while `during` runs; what it plays has to end by that, by itself, or by `cancelled`."""
    queue = f"operations-{uuid4()}"
    async with working(client, stand_ins, queue):
        handle = await begin(client, order, queue)
        await stand_ins.reached(during)
        for _ in range(times):
            await handle.cancel()
        if cancelled is not None:
            cancelled.set()
        return await ended(handle)


def the_end(stand_ins: StandIns) -> OperationEnd:
    [end] = stand_ins.ends
    return end


# What there is


def test_every_lifecycle_row_names_a_registered_workflow_and_the_reverse() -> None:
    named = [row.workflow for each in lifecycles().values() for row in each.actions.values()]
    registered = {workflow.__name__ for workflow in WORKFLOWS}
    assert len(named) == len(set(named))
    assert registered == {*named, "DeliverWebhooks", "KeepWorking"}


def test_every_action_has_its_steps_here() -> None:
    rows = [(each.resource_type, name) for each in lifecycles().values() for name in each.actions]
    assert sorted(STEPS_OF) == sorted(rows)


def test_every_step_has_words_and_all_words_are_of_steps() -> None:
    used = {step for steps in STEPS_OF.values() for step in steps} | set(UNDO_OF.values())
    assert set(STEPS) == used
    assert used <= set(REAL)
    assert all(title and not title.endswith(".") for title in STEPS.values())


# How it goes


@pytest.mark.parametrize(("resource_type", "action"), STEPS_OF)
async def test_an_operation_claims_does_its_steps_in_order_and_ends(
    client: Client, resource_type: str, action: str
) -> None:
    stand_ins = StandIns()
    order = order_for(resource_type, action)
    assert await run(client, order, stand_ins) == WorkflowExecutionStatus.COMPLETED
    steps = STEPS_OF[resource_type, action]
    assert stand_ins.calls == ["claim_operation", *steps, "end_operation"]
    assert stand_ins.steps == {step: ["running", "succeeded"] for step in steps}
    assert the_end(stand_ins) == OperationEnd(order, "succeeded")


FAILURES = [(*kind, step) for kind in UNDO_OF for step in STEPS_OF[kind]]


@pytest.mark.parametrize(("resource_type", "action", "step"), FAILURES)
async def test_what_was_begun_is_undone_and_nothing_else(
    client: Client, resource_type: str, action: str, step: str
) -> None:
    steps = STEPS_OF[resource_type, action]
    stand_ins = StandIns({step: fails(ImageUnavailable("No such image: name another."))})
    order = order_for(resource_type, action)
    assert await run(client, order, stand_ins) == WorkflowExecutionStatus.FAILED
    done = steps[: steps.index(step) + 1]
    # The undo of the step that has failed is among it: it may have half happened.
    undone = [UNDO_OF[resource_type, action]] if FIRST_UNDONE[resource_type, action] in done else []
    left_as_seen = action_of(resource_type, action).on_failure == "before"
    observed = [f"observe_{resource_type}"] if left_as_seen else []
    assert stand_ins.calls == ["claim_operation", *done, *undone, *observed, "end_operation"]
    assert the_end(stand_ins) == OperationEnd(
        order, "failed", "image_unavailable", "No such image: name another."
    )


@pytest.mark.fault("8")
async def test_a_restart_stops_nothing_while_an_image_is_missing(client: Client) -> None:
    stand_ins = StandIns({"pull_images": fails(ImageUnavailable("Nobody has the image: load it."))})
    order = order_for("instance", "restart")
    assert await run(client, order, stand_ins) == WorkflowExecutionStatus.FAILED
    assert stand_ins.steps_run == ["pull_images"]


async def test_a_step_that_may_yet_succeed_is_tried_again(skipping: Client) -> None:
    stand_ins = StandIns({"start_odoo": fails(EngineError("The engine is busy."), times=3)})
    assert await run(skipping, DEPLOY, stand_ins) == WorkflowExecutionStatus.COMPLETED
    assert stand_ins.calls.count("start_odoo") == 4
    assert stand_ins.steps["start_odoo"] == ["running", "failed: The engine is busy."] * 3 + [
        "running",
        "succeeded",
    ]
    assert the_end(stand_ins).outcome == "succeeded"


@pytest.mark.fault("5")
async def test_a_step_is_given_up_and_undone_ten_minutes_after_it_failed_first(skipping: Client) -> None:
    stand_ins = StandIns({"start_odoo": fails(EngineError("The engine is busy."))})
    queue = f"operations-{uuid4()}"
    async with working(skipping, stand_ins, queue):
        handle = await begin(skipping, DEPLOY, queue)
        assert await ended(handle) == WorkflowExecutionStatus.FAILED
    assert stand_ins.calls[-3:] == ["start_odoo", "remove_instance", "end_operation"]
    assert the_end(stand_ins) == OperationEnd(DEPLOY, "failed", "engine_error", "The engine is busy.")
    first, *_, last = [
        event.event_time.ToDatetime()
        for event in (await handle.fetch_history()).events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED
    ]
    assert timedelta(minutes=10) <= last - first < timedelta(minutes=11)
    # 1, 2, 4, 8, 16 and then 30 seconds lie between.
    assert stand_ins.calls.count("start_odoo") == 25


@pytest.mark.fault("5")
async def test_a_step_waits_as_long_as_a_provider_asks(skipping: Client) -> None:
    throttled = ProviderThrottled("Too many requests.", retry_after=120)
    stand_ins = StandIns({"create_node": fails(throttled, times=1)})
    queue = f"operations-{uuid4()}"
    async with working(skipping, stand_ins, queue):
        handle = await begin(skipping, PROVISION, queue)
        assert await ended(handle) == WorkflowExecutionStatus.COMPLETED
    timers = [
        event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
        for event in (await handle.fetch_history()).events
        if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED
    ]
    assert timers == [timedelta(minutes=2)]


async def test_undoing_is_tried_until_it_succeeds(skipping: Client) -> None:
    stand_ins = StandIns(
        {
            "check_engine": fails(ProviderRefused("No quota.")),
            "destroy_node": fails(EngineError("The cloud is busy."), times=6),
        }
    )
    assert await run(skipping, PROVISION, stand_ins) == WorkflowExecutionStatus.FAILED
    assert stand_ins.calls[-8:] == [*["destroy_node"] * 7, "end_operation"]
    assert the_end(stand_ins) == OperationEnd(PROVISION, "failed", "provider_refused", "No quota.")


async def test_undoing_that_no_try_can_mend_is_told_in_the_end(client: Client) -> None:
    stand_ins = StandIns(
        {
            "create_node": fails(ProviderRefused("The cloud does not know the key: give another.")),
            "destroy_node": fails(ProviderRefused("The cloud does not know the key: give another.")),
        }
    )
    assert await run(client, PROVISION, stand_ins) == WorkflowExecutionStatus.FAILED
    assert stand_ins.calls[-2:] == ["destroy_node", "end_operation"]
    assert the_end(stand_ins) == OperationEnd(
        PROVISION,
        "failed",
        "provider_refused",
        "The cloud does not know the key: give another."
        " “Destroy the machine” failed too: The cloud does not know the key: give another."
        " Put that right, then delete the server.",
    )


@workflow.defn(sandboxed=False)
class TwoUndone:
    """More than any workflow of ours has to undo as yet."""

    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, self._steps)

    async def _steps(self, run: OperationRun) -> None:
        await run.step(ServerActivities.create_node, undo=ServerActivities.destroy_node)
        await run.step(InstanceActivities.create_network, undo=InstanceActivities.remove_instance)
        await run.step(InstanceActivities.create_volumes, undo=InstanceActivities.remove_instance)
        await run.step(InstanceActivities.start_odoo)


@pytest.mark.parametrize("refused", [False, True])
async def test_undoing_goes_backwards_and_past_what_cannot_be_undone(client: Client, refused: bool) -> None:
    stand_ins = StandIns({"start_odoo": fails(ImageUnavailable("It broke."))})
    if refused:
        stand_ins.plays["remove_instance"] = fails(ProviderRefused("It may not."))
    queue = f"operations-{uuid4()}"
    async with working(client, stand_ins, queue, [TwoUndone]):
        handle = await client.start_workflow(TwoUndone.run, DEPLOY, id=queue, task_queue=queue)
        assert await ended(handle) == WorkflowExecutionStatus.FAILED
    assert stand_ins.calls[-4:] == ["start_odoo", "remove_instance", "destroy_node", "end_operation"]
    assert ("It may not." in str(the_end(stand_ins).message)) is refused


@workflow.defn(sandboxed=False)
class Repeated:
    """Runs one step twice; the second run fails once."""

    @workflow.run
    async def run(self, order: OperationOrder) -> None:
        await run_operation(order, self._steps)

    async def _steps(self, run: OperationRun) -> None:
        for _ in range(2):
            await run.step(InstanceActivities.start_odoo)


async def test_each_run_of_a_step_has_a_record_of_its_own(client: Client) -> None:
    async def play(attempt: int) -> None:
        if attempt == 2:
            raise EngineError("It broke.")

    stand_ins = StandIns({"start_odoo": play})
    queue = f"operations-{uuid4()}"
    async with working(client, stand_ins, queue, [Repeated]):
        handle = await client.start_workflow(Repeated.run, DEPLOY, id=queue, task_queue=queue)
        assert await ended(handle) == WorkflowExecutionStatus.COMPLETED
    assert stand_ins.steps == {
        "start_odoo": ["running", "succeeded"],
        "start_odoo.2": ["running", "failed: It broke.", "running", "succeeded"],
    }


# What people are told


async def test_what_a_library_says_never_leaves_the_worker(
    skipping: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To render a traceback for each of many attempts takes longer than the test may.
    monkeypatch.setattr(interceptor.log, "exception", lambda *_, **__: None, raising=False)
    stand_ins = StandIns({"personalise_database": fails(ValueError(f"cannot use {SECRET}"))})
    queue = f"operations-{uuid4()}"
    async with working(skipping, stand_ins, queue):
        handle = await begin(skipping, DEPLOY, queue)
        assert await ended(handle) == WorkflowExecutionStatus.FAILED
    end = the_end(stand_ins)
    assert (end.outcome, end.code) == ("failed", "internal_error")
    assert "ValueError" in str(end.message)
    history = await handle.fetch_history()
    assert "ValueError" in history.to_json()
    assert SECRET not in history.to_json() + repr(end) + repr(stand_ins.steps)


async def test_a_known_error_keeps_its_words_and_its_cause_is_left_behind(client: Client) -> None:
    error = ImageUnavailable("No registry has the image: name another.")
    error.__cause__ = ValueError(f"https://user:{SECRET}@registry")
    stand_ins = StandIns({"pull_images": fails(error)})
    queue = f"operations-{uuid4()}"
    async with working(client, stand_ins, queue):
        handle = await begin(client, DEPLOY, queue)
        assert await ended(handle) == WorkflowExecutionStatus.FAILED
    assert the_end(stand_ins).message == "No registry has the image: name another."
    assert SECRET not in (await handle.fetch_history()).to_json()


# Cancellation


async def test_what_was_cancelled_before_its_claim_does_no_step(client: Client) -> None:
    stand_ins = StandIns({"claim_operation": gives(False)})
    # Nobody has told Temporal of it.
    assert await run(client, DEPLOY, stand_ins) == WorkflowExecutionStatus.FAILED
    assert stand_ins.calls == ["claim_operation", "end_operation"]
    assert the_end(stand_ins).outcome == "cancelled"


async def test_what_was_cancelled_before_a_worker_saw_it_is_closed_all_the_same(client: Client) -> None:
    stand_ins = StandIns()
    queue = f"operations-{uuid4()}"
    handle = await begin(client, DEPLOY, queue)
    await handle.cancel()
    async with working(client, stand_ins, queue):
        assert await ended(handle) == WorkflowExecutionStatus.CANCELED
    assert stand_ins.steps_run == []
    assert the_end(stand_ins) == OperationEnd(
        DEPLOY, "cancelled", "cancelled", "The operation was cancelled.", has_begun=False
    )


async def test_a_cancellation_while_it_claims_does_no_step(client: Client) -> None:
    cancelled = asyncio.Event()
    stand_ins = StandIns({"claim_operation": until(cancelled, result=True)})
    status = await run_and_cancel(client, DEPLOY, stand_ins, during="claim_operation", cancelled=cancelled)
    assert status == WorkflowExecutionStatus.CANCELED
    assert stand_ins.calls == ["claim_operation", "end_operation"]
    assert the_end(stand_ins).outcome == "cancelled"


@pytest.mark.parametrize(
    ("order", "step", "undone"),
    [
        (PROVISION, "prepare_keys", []),
        (PROVISION, "wait_for_ssh", ["destroy_node"]),
        (DEPLOY, "pull_images", []),
        (DEPLOY, "prepare_database", ["remove_instance"]),
        (DEPLOY, "check_login", ["remove_instance"]),
        (order_for("instance", "restart"), "start_odoo", []),
    ],
)
async def test_a_cancellation_stops_the_step_and_undoes(
    client: Client, order: OperationOrder, step: str, undone: list[str]
) -> None:
    stand_ins = StandIns({step: until_cancelled})
    status = await run_and_cancel(client, order, stand_ins, during=step)
    assert status == WorkflowExecutionStatus.CANCELED
    # The step has come to its end before its undoing begins.
    assert stand_ins.steps[step] == ["running", "failed: Interrupted."]
    looked = ["observe_instance"] if order.action == "restart" else []
    assert stand_ins.calls[-len(undone + looked) - 2 :] == [step, *undone, *looked, "end_operation"]
    assert the_end(stand_ins) == OperationEnd(order, "cancelled", "cancelled", "The operation was cancelled.")


async def test_a_cancellation_that_comes_too_late_changes_nothing(client: Client) -> None:
    ending = asyncio.Event()
    stand_ins = StandIns({"end_operation": until(ending)})
    asyncio.get_running_loop().call_later(1, ending.set)
    status = await run_and_cancel(client, DEPLOY, stand_ins, during="end_operation")
    assert status == WorkflowExecutionStatus.COMPLETED
    assert stand_ins.calls.count("end_operation") == 1
    assert the_end(stand_ins) == OperationEnd(DEPLOY, "succeeded")


async def test_a_cancellation_does_not_stop_the_undoing(client: Client) -> None:
    undone = asyncio.Event()
    stand_ins = StandIns(
        {"check_login": fails(ImageUnavailable("It broke.")), "remove_instance": until(undone)}
    )
    asyncio.get_running_loop().call_later(1, undone.set)
    status = await run_and_cancel(client, DEPLOY, stand_ins, during="remove_instance", times=2)
    assert status == WorkflowExecutionStatus.FAILED
    assert stand_ins.steps["remove_instance"] == ["running", "succeeded"]
    assert the_end(stand_ins) == OperationEnd(DEPLOY, "failed", "image_unavailable", "It broke.")


async def test_a_second_cancellation_does_not_stop_the_undoing_of_the_first(client: Client) -> None:
    undone = asyncio.Event()
    stand_ins = StandIns({"start_odoo": until_cancelled, "remove_instance": until(undone)})
    queue = f"operations-{uuid4()}"
    async with working(client, stand_ins, queue):
        handle = await begin(client, DEPLOY, queue)
        await stand_ins.reached("start_odoo")
        await handle.cancel()
        await stand_ins.reached("remove_instance")
        await handle.cancel()
        await asyncio.sleep(0.5)
        undone.set()
        assert await ended(handle) == WorkflowExecutionStatus.CANCELED
    assert stand_ins.steps["remove_instance"] == ["running", "succeeded"]
    assert the_end(stand_ins).outcome == "cancelled"


# Deletion by force

DELETIONS = [("server", "destroy_node"), ("instance", "remove_instance")]


@pytest.mark.parametrize(("resource_type", "step"), DELETIONS)
async def test_a_deletion_by_force_forgets_what_cannot_be_reached(
    skipping: Client, resource_type: str, step: str
) -> None:
    stand_ins = StandIns({step: fails(EngineError("It does not answer."))})
    order = order_for(resource_type, "delete", force=True)
    assert await run(skipping, order, stand_ins) == WorkflowExecutionStatus.COMPLETED
    assert {*stand_ins.calls} == {"claim_operation", step, "end_operation"}
    assert stand_ins.calls.count(step) > 20
    assert stand_ins.steps[step][-1] == "failed: It does not answer."
    assert the_end(stand_ins) == OperationEnd(order, "succeeded")


@pytest.mark.parametrize(("resource_type", "step"), DELETIONS)
async def test_a_deletion_without_force_fails_when_it_cannot_remove(
    skipping: Client, resource_type: str, step: str
) -> None:
    stand_ins = StandIns({step: fails(EngineError("It does not answer."))})
    order = order_for(resource_type, "delete")
    assert await run(skipping, order, stand_ins) == WorkflowExecutionStatus.FAILED
    assert the_end(stand_ins) == OperationEnd(order, "failed", "engine_error", "It does not answer.")


@pytest.mark.parametrize(("resource_type", "step"), DELETIONS)
async def test_a_deletion_by_force_that_is_cancelled_forgets_nothing(
    client: Client, resource_type: str, step: str
) -> None:
    stand_ins = StandIns({step: fails(EngineError("It does not answer."))})
    order = order_for(resource_type, "delete", force=True)
    status = await run_and_cancel(client, order, stand_ins, during=step)
    assert status == WorkflowExecutionStatus.CANCELED
    assert the_end(stand_ins).outcome == "cancelled"


@pytest.mark.fault("5")
@pytest.mark.parametrize(("resource_type", "step"), DELETIONS)
async def test_a_deletion_that_removes_all_ends_as_done_although_it_was_cancelled(
    client: Client, resource_type: str, step: str
) -> None:
    cancelled = asyncio.Event()
    stand_ins = StandIns({step: until(cancelled)})
    order = order_for(resource_type, "delete")
    status = await run_and_cancel(client, order, stand_ins, during=step, cancelled=cancelled)
    assert status == WorkflowExecutionStatus.COMPLETED
    assert the_end(stand_ins) == OperationEnd(order, "succeeded")


@pytest.mark.fault("5")
async def test_what_is_seen_after_a_failure_is_recorded(client: Client) -> None:
    order = order_for("instance", "restart")
    refused = fails(ImageUnavailable("No registry has the image."))
    stand_ins = StandIns({"start_odoo": refused, "observe_instance": gives("stopped")})
    assert await run(client, order, stand_ins) == WorkflowExecutionStatus.FAILED
    assert the_end(stand_ins).observed == "stopped"
    blind = StandIns({"start_odoo": refused, "observe_instance": fails(EngineError("It does not answer."))})
    assert await run(client, order, blind) == WorkflowExecutionStatus.FAILED
    assert the_end(blind).observed is None
