"""What every activity gets unasked: recorded steps, heartbeats, and errors that Temporal understands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from deployerp.activities.records import Records, StepFailure
from deployerp.core.errors import DeployError, OperationClosed, ProviderThrottled
from deployerp.domain.operations.messages import OperationOrder
from deployerp.domain.operations.retries import pause_after
from deployerp.domain.operations.steps import STEPS, StepRun

log = structlog.get_logger()
# A step may tell of its progress far more often than anybody reads.
_DETAIL_SECONDS = 0.5
# How often a running step looks whether its operation is still open.
RENEWAL_SECONDS = 5.0
# A cancellation reaches an activity with the answer to a heartbeat.
HEARTBEAT_SECONDS = 2.0


class Step:
    """The step that the running activity is, for telling what it does in words."""

    def __init__(self, records: Records, run: StepRun) -> None:
        self._records = records
        self.run = run
        self._detail: str | None = None
        self._closed: OperationClosed | None = None
        self.attempt = 1

    def tell(self, detail: str) -> None:
        self._detail = detail

    @asynccontextmanager
    async def recorded(self) -> AsyncIterator[None]:
        """Records the step's start, what it tells, and its end; ends it when its operation is closed.

        Raises `OperationClosed`.
        """
        self.attempt = await self._records.begin_step(self.run)
        beside = [
            asyncio.create_task(self._keep_telling()),
            asyncio.create_task(self._keep_open(_this_task())),
        ]
        try:
            yield
        except BaseException as error:
            _cancel(beside)
            failure = self._closed or error
            told = _step_failure(failure, self.attempt)
            await asyncio.shield(self._records.fail_step(self.run, told))
            raise failure from None
        else:
            _cancel(beside)
            await self._records.end_step(self.run, self._detail)
        finally:
            # They give back what they have of the database before it is closed.
            await asyncio.wait(beside)

    async def _keep_open(self, step: asyncio.Task[Any]) -> None:
        while True:
            await asyncio.sleep(RENEWAL_SECONDS)
            try:
                await self._records.renew_step(self.run)
            except OperationClosed as closed:
                self._closed = closed
                step.cancel()
                return
            except Exception:
                # The database may be away for a while, which is no reason to end the step.
                log.warning("step not renewed", step=self.run.name, operation_id=self.run.operation_id)

    async def _keep_telling(self) -> None:
        told = None
        while True:
            await asyncio.sleep(_DETAIL_SECONDS)
            if self._detail is not None and self._detail != told:
                told = self._detail
                await self._records.detail_step(self.run, told)


_current: ContextVar[Step | None] = ContextVar("step", default=None)


def tell(detail: str) -> None:
    """Tells what the running step does, in words that hold no secret; the last of half a second is shown."""
    step = _current.get()
    if step is not None:
        step.tell(detail)


def current_run(order: OperationOrder, name: str) -> StepRun:
    """The run of this step that the running activity is; the first where none is recorded."""
    step = _current.get()
    return StepRun(order.operation_id, name) if step is None else step.run


def current_attempt() -> int:
    """Which attempt of the running step this is, from 1, over all workers and workflow tasks."""
    step = _current.get()
    return 1 if step is None else step.attempt


class ActivityInterceptor(Interceptor):
    """Wraps every activity of a worker."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Inbound(next, self._records)


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, records: Records) -> None:
        super().__init__(next)
        self._records = records

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        heartbeat = asyncio.create_task(_heartbeat(info.heartbeat_timeout))
        try:
            async with self._step_of(info, input):
                return await super().execute_activity(input)
        except DeployError as error:
            # No cause: what a library says of a failure may hold what must not reach the history.
            raise as_application_error(error) from None
        except ApplicationError:
            raise
        except Exception as error:
            log.exception("unexpected", activity=info.activity_type, workflow_id=info.workflow_id)
            raise ApplicationError(unexpected(error), type=DeployError.code) from None
        finally:
            heartbeat.cancel()

    @asynccontextmanager
    async def _step_of(self, info: activity.Info, input: ExecuteActivityInput) -> AsyncIterator[None]:
        order = input.args[0] if input.args else None
        if not isinstance(order, OperationOrder) or info.activity_type not in STEPS:
            yield
            return
        run = StepRun.of_activity(order.operation_id, info.activity_type, info.activity_id)
        step = Step(self._records, run)
        token = _current.set(step)
        try:
            async with step.recorded():
                log.info(
                    "step", step=info.activity_type, operation_id=order.operation_id, attempt=step.attempt
                )
                yield
        finally:
            _current.reset(token)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - an activity always runs in a task
    return task


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def _step_failure(error: BaseException, attempt: int) -> StepFailure:
    if isinstance(error, DeployError):
        pause = timedelta(seconds=error.retry_after) if isinstance(error, ProviderThrottled) else None
        return StepFailure(
            error.code, error.in_full, (pause or pause_after(attempt)) if error.retryable else None
        )
    if isinstance(error, Exception):
        message = error.message if isinstance(error, ApplicationError) else unexpected(error)
        return StepFailure(DeployError.code, message, pause_after(attempt))
    return StepFailure("cancelled", "Interrupted.")


def unexpected(error: Exception) -> str:
    return f"Failed unexpectedly with {type(error).__name__}: the worker's log tells where."


async def _heartbeat(timeout: timedelta | None) -> None:
    """Beats for the activity, so that a dead worker is noticed without each activity thinking of it."""
    while timeout:
        activity.heartbeat()
        await asyncio.sleep(min(timeout.total_seconds() / 3, HEARTBEAT_SECONDS))


def as_application_error(error: DeployError) -> ApplicationError:
    """The error as Temporal keeps it: its code as the type, and whether trying again can help."""
    delay = timedelta(seconds=error.retry_after) if isinstance(error, ProviderThrottled) else None
    return ApplicationError(
        error.message,
        error.details,
        type=error.code,
        non_retryable=not error.retryable,
        next_retry_delay=delay,
    )
