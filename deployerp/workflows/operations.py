"""How every operation runs: claim, steps with their undoing, end; and the sweep that nothing is left of."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    FailureError,
    is_cancelled_exception,
)
from temporalio.exceptions import (
    TimeoutError as TimedOut,
)

with workflow.unsafe.imports_passed_through():
    from deployerp.activities.operations import OperationActivities
    from deployerp.activities.records import Records

from deployerp.domain.errors import codes
from deployerp.domain.messages import OperationEnd, OperationOrder, Outcome, SweepReport
from deployerp.domain.steps import STEPS

# A step that keeps failing for a reason that may pass is given up after this many tries.
STEP_ATTEMPTS = 4
# Beats come every two seconds; what blocks a worker's loop for longest is hashing a password.
HEARTBEAT = timedelta(seconds=10)

StepActivity = Callable[[Any, OperationOrder], Awaitable[None]]


class OperationRun:
    """The steps of one operation, and how to undo what they made."""

    def __init__(self, order: OperationOrder) -> None:
        self.order = order
        self._undo: list[StepActivity] = []

    async def step(
        self,
        step: StepActivity,
        *,
        timeout: timedelta = timedelta(minutes=10),
        undo: StepActivity | None = None,
        attempts: int = STEP_ATTEMPTS,
    ) -> None:
        """Runs a step; `undo` is registered before it, since a step that fails may have half happened."""
        if undo is not None and undo not in self._undo:
            self._undo.append(undo)
        await self._execute(step, timeout, attempts)
        # A step that is done before it hears of a cancellation ends as if there had been none.
        if workflow.cancellation_reason() is not None:
            raise CancelledError("Cancelled between two steps.")

    async def undo(self) -> list[str]:
        """Undoes, last first, each until it is done; tells, in words, what no further try can undo."""
        left = []
        for step in reversed(self._undo):
            try:
                await self._execute(step, timedelta(minutes=10), attempts=0)
            except ActivityError as error:
                _, _, reason = _reason(error)
                left.append(f"“{STEPS[step.__name__]}” failed too: {reason}")
        return left

    async def _execute(self, step: StepActivity, timeout: timedelta, attempts: int) -> None:
        title = STEPS[step.__name__]
        workflow.set_current_details(title)
        await workflow.execute_activity_method(
            step,
            self.order,
            start_to_close_timeout=timeout,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=RetryPolicy(
                initial_interval=timedelta(seconds=1),
                maximum_interval=timedelta(seconds=30),
                maximum_attempts=attempts,
            ),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=title,
        )


async def run_operation(order: OperationOrder, steps: Callable[[OperationRun], Awaitable[None]]) -> None:
    """Claims the operation, runs its steps and records how it ended; failure and cancellation undo first."""
    run = OperationRun(order)
    try:
        if not await _record(Records.claim_operation, order):
            raise CancelledError("Cancelled before it began.")
        await steps(run)
    except (FailureError, asyncio.CancelledError) as error:
        outcome, code, message = _reason(error)
        await _uninterrupted(_close(run, outcome, code, message))
        raise
    await _uninterrupted(_record(Records.end_operation, OperationEnd(order, "succeeded")))
    workflow.set_current_details("Done")


async def _uninterrupted(work: Coroutine[Any, Any, Any]) -> None:
    """Waits for `work` through any cancellation: what undoes and what records an end must come to its end."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    task.result()


async def _close(run: OperationRun, outcome: Outcome, code: str, message: str) -> None:
    left = await run.undo()
    if left:
        message = " ".join((message, *left, f"Put that right, then delete the {run.order.resource_type}."))
    await _record(Records.end_operation, OperationEnd(run.order, outcome, code, message))
    workflow.set_current_details(message)


async def _record(record: Callable[[Any, Any], Awaitable[Any]], argument: object) -> Any:
    return await workflow.execute_activity_method(
        record,
        argument,
        start_to_close_timeout=timedelta(seconds=30),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10)
        ),
    )


def _reason(error: BaseException) -> tuple[Outcome, str, str]:
    """What a failure was, for people: the innermost cause says it best."""
    if is_cancelled_exception(error):
        return "cancelled", "cancelled", "The operation was cancelled."
    cause = error.cause if isinstance(error, ActivityError) else error
    # Only our own errors are written for people, and only they are known to hold no secret.
    if isinstance(cause, ApplicationError) and cause.type in codes():
        return "failed", cause.type, cause.message
    step = STEPS.get(error.activity_type, error.activity_type) if isinstance(error, ActivityError) else "It"
    if isinstance(cause, TimedOut):
        return "failed", "timeout", f"{step}: took too long. Look at the operation's steps and retry it."
    return (
        "failed",
        "internal_error",
        f"{step}: failed for a reason that the worker's log tells. Retry the operation.",
    )


@workflow.defn
class Sweep:
    """Starts operations and deliveries that were never started and closes those that have vanished."""

    @workflow.run
    async def run(self) -> SweepReport:
        return await workflow.execute_activity_method(
            OperationActivities.sweep,
            start_to_close_timeout=timedelta(minutes=2),
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary="Start what was never started, close what has vanished",
        )
