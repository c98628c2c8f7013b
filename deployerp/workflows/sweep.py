"""The sweep: one workflow that never ends, with one activity that lasts.

A workflow for each round would fill Temporal's lists and its database with rounds in which nothing was found.
"""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from deployerp.activities.sweep import SHIFT, OperationActivities

# Of one run; the next goes on with a history that is empty. Also a worker that stops ends a shift.
SHIFTS = 100
# The lease: when a worker dies, another takes the sweep over after so long.
_HEARTBEAT = timedelta(seconds=10)


@workflow.defn
class KeepSweeping:
    """Starts operations and deliveries that were never started and closes those that have vanished."""

    @workflow.run
    async def run(self) -> None:
        workflow.set_current_details("Starts what was never started, closes what has vanished")
        for _ in range(SHIFTS):
            await workflow.execute_activity_method(
                OperationActivities.keep_sweeping,
                start_to_close_timeout=SHIFT + timedelta(hours=1),
                heartbeat_timeout=_HEARTBEAT,
                retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), backoff_coefficient=1),
                summary="Sweep until the worker stops",
            )
        workflow.continue_as_new()


WORKFLOWS = (KeepSweeping,)
