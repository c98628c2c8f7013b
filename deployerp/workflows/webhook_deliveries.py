"""How an event reaches an endpoint: tries over three days, until one is accepted or none is left."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from deployerp.activities.webhook_deliveries import WebhookActivities

from deployerp.domain.messages import AttemptOrder, AttemptResult, DeliveryOrder

# Between one try and the next: quick while it may be a hiccup, patient while somebody mends it.
DELAYS = (
    timedelta(seconds=5),
    timedelta(seconds=30),
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=3),
    timedelta(hours=8),
    timedelta(hours=20),
    timedelta(hours=40),
)
TRIES = len(DELAYS) + 1
# A receiver that comes back must not be met by everything it has missed at the same moment.
_JITTER = 0.1


@workflow.defn
class DeliverWebhook:
    @workflow.run
    async def run(self, order: DeliveryOrder) -> None:
        result = await _attempt(order, 1)
        for number, delay in enumerate(DELAYS, start=2):
            if result.done:
                break
            await _pause(delay, result.retry_after, f"try {number} of {TRIES}")
            result = await _attempt(order, number)
        workflow.set_current_details("Done: the delivery says how it ended")


async def _attempt(order: DeliveryOrder, number: int) -> AttemptResult:
    title = f"Try {number} of {TRIES}: send {order.event_type}"
    workflow.set_current_details(title)
    # A receiver's failure is a result; what Temporal tries again here is only our own: database, worker.
    return await workflow.execute_activity_method(
        WebhookActivities.attempt_delivery,
        AttemptOrder(order, number, last=number == TRIES),
        start_to_close_timeout=timedelta(seconds=60),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1)
        ),
        summary=title,
    )


async def _pause(delay: timedelta, retry_after: float | None, before: str) -> None:
    """Waits as long as planned, or as the receiver asked for when that is longer."""
    planned = delay * workflow.random().uniform(1 - _JITTER, 1 + _JITTER)
    pause = max(planned, timedelta(seconds=retry_after or 0))
    until = (workflow.now() + pause).strftime("%Y-%m-%d %H:%M:%S")
    workflow.set_current_details(f"Waiting until {until} UTC for {before}")
    await workflow.sleep(pause, summary=f"Wait for {before}")


WORKFLOWS = (DeliverWebhook,)
