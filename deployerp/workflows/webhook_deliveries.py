"""How events reach an endpoint: turns of sending, and rests until something is due or somebody wakes it."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import NoReturn

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from deployerp.activities.webhooks.deliveries import WebhookActivities

from deployerp.domain.operations.messages import EndpointOrder, TurnOrder, TurnResult, queue_for

# Events of one run; the next goes on with a history that is empty. A worker that starts reads the histories
# of all endpoints that have something to do.
MOST_EVENTS = 200
# A turn and the slowest answer that it may have to wait for, and room for a busy database.
_LONGEST_TURN = timedelta(minutes=3)
# A worker that dies is noticed after so long; beats come twice as often.
_HEARTBEAT = timedelta(seconds=5)


# Without the sandbox: it imports this module anew for every run, which takes longer than all that a run does.
@workflow.defn(sandboxed=False)
class DeliverWebhooks:
    """Everything that is ever sent to one endpoint; its queue are the rows of its deliveries."""

    def __init__(self) -> None:
        self._woken = False
        self._changed = False

    @workflow.signal
    def wake(self) -> None:
        """Something has become due."""
        self._woken = True

    @workflow.signal
    def changed(self) -> None:
        """The endpoint is not the one that has failed any more, or it is to take nothing."""
        self._changed = True

    @workflow.run
    # Without defaults: Temporal gives the types of arguments only to as many as there are parameters.
    async def run(self, order: EndpointOrder, failures: int, rest: TurnResult | None) -> None:
        """Ends when nothing waits; `failures` are those in a row so far, `rest` is what it begins with."""
        while True:
            if rest:
                await self._rest(rest)
            if self._changed:
                failures = 0
                if order.failing:
                    _go_on(replace(order, failing=False), failures)
            if workflow.info().get_current_history_length() >= MOST_EVENTS:
                _go_on(order, failures)
            self._woken = self._changed = False
            rest = await _turn(TurnOrder(order, failures))
            failures = rest.failures
            if self._is_roused(rest):
                continue
            if rest.wait is None:
                workflow.set_current_details("Nothing waits: the next event starts it again")
                return
            if rest.wait and order.failing != bool(failures):
                _go_on(replace(order, failing=bool(failures)), failures, rest)

    def _is_roused(self, result: TurnResult) -> bool:
        """Whether it has been told not to rest as a turn has said."""
        return self._changed or (self._woken and not result.paused)

    async def _rest(self, result: TurnResult) -> None:
        if not result.wait:
            return
        until = (workflow.now() + timedelta(seconds=result.wait)).strftime("%Y-%m-%d %H:%M:%S")
        why = f"Nothing is due before {until} UTC"
        if result.paused:
            why = f"{result.failures} tries in a row have failed: left alone until {until} UTC"
        workflow.set_current_details(why)
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._is_roused(result),
                timeout=result.wait,
                timeout_summary=why if result.paused else "Wait for what is due next",
            )


def _go_on(order: EndpointOrder, failures: int, rest: TurnResult | None = None) -> NoReturn:
    """Goes on with an empty history, at the workers of endpoints like this one."""
    queue = queue_for(workflow.info().task_queue, failing=order.failing)
    workflow.continue_as_new(args=[order, failures, rest], task_queue=queue)


async def _turn(order: TurnOrder) -> TurnResult:
    title = "Send what is due"
    workflow.set_current_details(title)
    # A receiver's failure is a result; what Temporal tries again here is only our own: database, worker.
    return await workflow.execute_activity_method(
        WebhookActivities.send_due,
        order,
        start_to_close_timeout=_LONGEST_TURN,
        heartbeat_timeout=_HEARTBEAT,
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10)
        ),
        summary=title,
    )


WORKFLOWS = (DeliverWebhooks,)
