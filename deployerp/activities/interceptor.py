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

from deployerp.activities.records import Records
from deployerp.domain.errors import DeployError, ProviderThrottled
from deployerp.domain.messages import OperationOrder
from deployerp.domain.steps import STEPS

log = structlog.get_logger()
# A step may tell of its progress far more often than anybody reads.
_DETAIL_SECONDS = 0.5
# A cancellation reaches an activity with the answer to a heartbeat.
HEARTBEAT_SECONDS = 2.0


class Step:
    """The step that the running activity is, for telling what it does in words."""

    def __init__(self, records: Records, operation_id: str, name: str) -> None:
        self._records = records
        self._operation_id = operation_id
        self._name = name
        self._detail: str | None = None

    def tell(self, detail: str) -> None:
        self._detail = detail

    @asynccontextmanager
    async def recorded(self, attempt: int) -> AsyncIterator[None]:
        """Records the step's start, what it tells, and its end."""
        await self._records.begin_step(self._operation_id, self._name, attempt)
        telling = asyncio.create_task(self._keep_telling())
        try:
            yield
        except BaseException as error:
            telling.cancel()
            await asyncio.shield(self._end("failed", _in_words(error)))
            raise
        telling.cancel()
        await self._end("succeeded", self._detail)

    async def _end(self, state: str, detail: str | None) -> None:
        await self._records.end_step(self._operation_id, self._name, state, detail)

    async def _keep_telling(self) -> None:
        told = None
        while True:
            await asyncio.sleep(_DETAIL_SECONDS)
            if self._detail is not None and self._detail != told:
                told = self._detail
                await self._records.detail_step(self._operation_id, self._name, told)


_current: ContextVar[Step | None] = ContextVar("step", default=None)


def tell(detail: str) -> None:
    """Tells what the running step does, in words that hold no secret; the last of half a second is shown."""
    step = _current.get()
    if step is not None:
        step.tell(detail)


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
        step = Step(self._records, order.operation_id, info.activity_type)
        token = _current.set(step)
        log.info("step", step=info.activity_type, operation_id=order.operation_id, attempt=info.attempt)
        try:
            async with step.recorded(info.attempt):
                yield
        finally:
            _current.reset(token)


def _in_words(error: BaseException) -> str:
    if isinstance(error, DeployError | ApplicationError):
        return error.message
    return unexpected(error) if isinstance(error, Exception) else "Interrupted."


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
