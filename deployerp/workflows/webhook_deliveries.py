"""How events reach an endpoint: turns of sending, and rests until something is due or somebody wakes it."""

from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from deployerp.activities.webhook_deliveries import WebhookActivities

from deployerp.domain.messages import EndpointOrder, TurnOrder, TurnResult

# Of one run; the next goes on with a history that is empty.
TURNS = 100
# A turn and the slowest answer that it may have to wait for, and room for a busy database.
_LONGEST_TURN = timedelta(minutes=3)
# A worker that dies is noticed after so long; beats come twice as often.
_HEARTBEAT = timedelta(seconds=5)


@workflow.defn
class DeliverWebhooks:
    """Everything that is ever sent to one endpoint; its queue are the rows of its deliveries."""

    def __init__(self) -> None:
        self._woken = False

    @workflow.signal
    def wake(self) -> None:
        """Something has become due."""
        self._woken = True

    @workflow.run
    async def run(self, order: EndpointOrder, failures: int = 0) -> None:
        """Ends when nothing waits; `failures` are those in a row so far."""
        for _ in range(TURNS):
            self._woken = False
            result = await _turn(TurnOrder(order, failures))
            failures = result.failures
            if result.wait is None and not self._woken:
                workflow.set_current_details("Nothing waits: the next event starts it again")
                return
            await self._rest(result)
        workflow.continue_as_new(args=[order, failures])

    async def _rest(self, result: TurnResult) -> None:
        if not result.wait:
            return
        until = (workflow.now() + timedelta(seconds=result.wait)).strftime("%Y-%m-%d %H:%M:%S")
        if result.paused:
            why = f"{result.failures} tries in a row have failed: left alone until {until} UTC"
            workflow.set_current_details(why)
            await workflow.sleep(result.wait, summary=why)
            return
        workflow.set_current_details(f"Nothing is due before {until} UTC")
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._woken, timeout=result.wait, timeout_summary="Wait for what is due next"
            )


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
