"""Faults in the steps of a worker: at a chosen step, before or after its real work."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from deployerp.core.errors import DeployError, EngineError, EngineRefused

Deed = Callable[[], Awaitable[None]]
MESSAGE = "The fault that the test has put here."


@dataclass
class _Fault:
    when: str
    deed: Deed
    times: int = 1


class Faults(Interceptor):
    """Innermost of a worker's interceptors: its errors pass through our own, as a driver's do."""

    def __init__(self) -> None:
        self._planned: dict[str, _Fault] = {}
        self.attempts: list[tuple[str, str]] = []
        """Step and operation's workflow id of each attempt, as they came."""

    def clear(self) -> None:
        self._planned.clear()
        self.attempts.clear()

    def fail(self, step: str, *, when: str = "after", retryable: bool = False) -> None:
        """The next attempt of the step fails, `before` or `after` its real work was done."""

        async def raise_it() -> None:
            error: type[DeployError] = EngineError if retryable else EngineRefused
            raise error(MESSAGE)

        self._planned[step] = _Fault(when, raise_it)

    def do(self, step: str, deed: Deed, *, when: str = "before") -> None:
        """Something happens `before` or `after` the next attempt's real work."""
        self._planned[step] = _Fault(when, deed)

    @property
    def unused(self) -> list[str]:
        return [step for step, fault in self._planned.items() if fault.times]

    async def happen(self, step: str, when: str) -> None:
        fault = self._planned.get(step)
        if fault is not None and fault.when == when and fault.times:
            fault.times -= 1
            await fault.deed()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Inbound(next, self)


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, faults: Faults) -> None:
        super().__init__(next)
        self._faults = faults

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        self._faults.attempts.append((info.activity_type, str(info.workflow_id)))
        await self._faults.happen(info.activity_type, "before")
        result = await super().execute_activity(input)
        await self._faults.happen(info.activity_type, "after")
        return result
