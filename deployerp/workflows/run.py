"""How every operation runs: claim, steps with their undoing, end."""

import asyncio
from collections import Counter
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
    from deployerp.activities.records import Records

from deployerp.core.errors import codes
from deployerp.domain.operations.messages import OperationEnd, OperationOrder, Outcome
from deployerp.domain.operations.retries import FIRST_PAUSE, LONGEST_PAUSE, RETRY_PERIOD, pause_after
from deployerp.domain.operations.steps import STEPS, StepRun

# Beats come every two seconds; what blocks a worker's loop for longest is hashing a password.
HEARTBEAT = timedelta(seconds=10)

_OBSERVATION = timedelta(seconds=45)

StepActivity = Callable[[Any, OperationOrder], Awaitable[None]]
Observation = Callable[[Any, OperationOrder], Awaitable[str | None]]


class OperationRun:
    """The steps of one operation, and how to undo what they made."""

    def __init__(self, order: OperationOrder) -> None:
        self.order = order
        self.has_begun = False
        self._undo: list[StepActivity] = []
        self._runs: Counter[str] = Counter()

    async def step(
        self,
        step: StepActivity,
        *,
        timeout: timedelta = timedelta(minutes=10),
        undo: StepActivity | None = None,
        to_its_end: bool = False,
    ) -> None:
        """Runs a step until it succeeds, at most ten minutes beyond its first failure.

        `undo` is registered before it, since a step that fails may have half happened. With `to_its_end` a
        cancellation waits for the attempt that runs, and is void when that one succeeds: half of it would
        serve nobody.
        """
        if undo is not None and undo not in self._undo:
            self._undo.append(undo)
        self._refuse_cancelled()
        self.has_begun = True
        run, attempt, failed_at = self._next_run(step), 1, None
        while True:
            work = self._execute(step, run, timeout, RetryPolicy(maximum_attempts=1))
            try:
                await (_uninterrupted(work) if to_its_end else work)
            except ActivityError as error:
                failed_at = failed_at or workflow.now()
                if not _may_pass(error) or workflow.now() - failed_at >= RETRY_PERIOD:
                    raise
                self._refuse_cancelled()
                await workflow.sleep(_pause(error, attempt))
                attempt += 1
            else:
                return

    def _refuse_cancelled(self) -> None:
        # A step that is done before it hears of a cancellation ends as if there had been none.
        if workflow.cancellation_reason() is not None:
            raise CancelledError("Cancelled between two steps.")

    async def undo(self) -> list[str]:
        """Undoes, last first, each until it is done; tells, in words, what no further try can undo."""
        left = []
        for step in reversed(self._undo):
            try:
                # By Temporal, whose own retries make no history: some take weeks.
                retries = RetryPolicy(initial_interval=FIRST_PAUSE, maximum_interval=LONGEST_PAUSE)
                await self._execute(step, self._next_run(step), timedelta(minutes=10), retries)
            except ActivityError as error:
                _, _, reason = _reason(error)
                left.append(f"“{STEPS[step.__name__]}” failed too: {reason}")
        return left

    def _next_run(self, step: StepActivity) -> StepRun:
        self._runs[step.__name__] += 1
        return StepRun(self.order.operation_id, step.__name__, self._runs[step.__name__])

    async def _execute(
        self, step: StepActivity, run: StepRun, timeout: timedelta, retries: RetryPolicy
    ) -> None:
        title = STEPS[step.__name__]
        workflow.set_current_details(title)
        await workflow.execute_activity_method(
            step,
            self.order,
            # The record of the step is found by it, so that a second run does not write into the first's.
            activity_id=run.activity_id,
            start_to_close_timeout=timeout,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=retries,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=title,
        )


def _may_pass(error: ActivityError) -> bool:
    """Whether another attempt may succeed: the step did not say no, or its worker was lost."""
    cause = error.cause
    return isinstance(cause, TimedOut) or (isinstance(cause, ApplicationError) and not cause.non_retryable)


def _pause(error: ActivityError, attempt: int) -> timedelta:
    asked = error.cause.next_retry_delay if isinstance(error.cause, ApplicationError) else None
    return asked or pause_after(attempt)


async def run_operation(
    order: OperationOrder,
    steps: Callable[[OperationRun], Awaitable[None]],
    observe: Observation | None = None,
) -> None:
    """Claims the operation, runs its steps and records how it ended; failure and cancellation undo first.

    `observe` looks at the resource where its action, when it fails, leaves the state that is seen then.
    """
    run = OperationRun(order)
    try:
        if not await _record(Records.claim_operation, order):
            raise CancelledError("Cancelled before it began.")
        await steps(run)
    except (FailureError, asyncio.CancelledError) as error:
        outcome, code, message = _reason(error)
        await _uninterrupted(_close(run, observe, outcome, code, message))
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


async def _close(
    run: OperationRun, observe: Observation | None, outcome: Outcome, code: str, message: str
) -> None:
    left = await run.undo()
    if left:
        message = " ".join((message, *left, f"Put that right, then delete the {run.order.resource_type}."))
    observed = await _observed(run.order, observe) if run.has_begun and observe else None
    end = OperationEnd(run.order, outcome, code, message, observed, run.has_begun)
    await _record(Records.end_operation, end)
    workflow.set_current_details(message)


async def _observed(order: OperationOrder, observe: Observation) -> str | None:
    """The status in which the resource is seen; None where it cannot be seen."""
    try:
        return await workflow.execute_activity_method(
            observe,
            order,
            start_to_close_timeout=_OBSERVATION,
            schedule_to_start_timeout=_OBSERVATION,
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary="Look at what is there",
        )
    except ActivityError:
        return None


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
