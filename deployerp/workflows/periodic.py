"""Periodic work: for each shard one workflow that never ends, with one activity that lasts.

A workflow for each round would fill Temporal's lists and its database with rounds in which nothing was found.
"""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from deployerp.activities.periodic import SHIFT, PeriodicActivities

from deployerp.domain.periodic import Shard

# Of one run; the next goes on with a history that is empty. Also a worker that stops ends a shift.
SHIFTS = 100
# The lease: when a worker dies, another takes the shard over after so long.
_HEARTBEAT = timedelta(seconds=10)


@workflow.defn
class KeepWorking:
    """Runs the periodic work of a shard on one worker at a time."""

    @workflow.run
    async def run(self, shard: Shard) -> None:
        workflow.set_current_details(f"{shard.work}, shard {shard.index + 1} of {shard.count}")
        for _ in range(SHIFTS):
            await workflow.execute_activity_method(
                PeriodicActivities.keep_working,
                shard,
                start_to_close_timeout=SHIFT + timedelta(hours=1),
                heartbeat_timeout=_HEARTBEAT,
                retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), backoff_coefficient=1),
                summary=f"{shard.work} until the worker stops",
            )
        workflow.continue_as_new(shard)


WORKFLOWS = (KeepWorking,)
