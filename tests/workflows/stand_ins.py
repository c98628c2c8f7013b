"""Activities with the names and signatures of the real ones, which do what a test says instead."""

import asyncio
import inspect
import shutil
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from deployerp.activities.instances import InstanceActivities
from deployerp.activities.periodic import PeriodicActivities
from deployerp.activities.records import Records, StepFailure
from deployerp.activities.server_instances import ServerInstanceActivities
from deployerp.activities.servers import ServerActivities
from deployerp.activities.steps.interceptor import ActivityInterceptor
from deployerp.activities.webhooks.deliveries import WebhookActivities
from deployerp.domain.operations.messages import (
    OperationEnd,
    OperationOrder,
    TurnResult,
    queue_for,
    workflow_id,
)
from deployerp.domain.operations.steps import STEPS, StepRun
from deployerp.worker import WORKFLOWS, activities_of

GROUPS = (
    Records,
    PeriodicActivities,
    ServerActivities,
    ServerInstanceActivities,
    InstanceActivities,
    WebhookActivities,
)
REAL = {real.__name__: real for group in GROUPS for real in activities_of(group)}

Play = Callable[[int], Awaitable[Any]]
"""What a stand-in does at its n-th try."""

_RESULTS: dict[str, Any] = {
    "claim_operation": True,
    "send_due": TurnResult(failures=0, wait=None),
}
_BEAT_SECONDS = 0.05


class StandIns:
    """Succeeds at everything, except where a play says otherwise; writes down what ran.

    `calls` has every try of every activity, by name; `steps` every step with the states it went through, as
    the interceptor records them; `ends` how operations ended.
    """

    def __init__(self, plays: Mapping[str, Play] | None = None) -> None:
        self.plays = dict(plays or {})
        self.calls: list[str] = []
        self.steps: defaultdict[str, list[str]] = defaultdict(list)
        self.ends: list[OperationEnd] = []
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def reached(self, name: str) -> None:
        """Waits until an activity has begun."""
        async with asyncio.timeout(30):
            await self._reached[name].wait()

    @property
    def steps_run(self) -> list[str]:
        """The steps in the order of their first try."""
        return list(dict.fromkeys(name for name in self.calls if name in STEPS))

    def activities(self) -> list[Callable[..., Any]]:
        return [self._stand_in(name, real) for name, real in REAL.items()]

    def _stand_in(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(real)
        parameters = list(signature.parameters.values())[1:]
        hints = get_type_hints(real)

        async def stand_in(*arguments: Any) -> Any:
            self.calls.append(name)
            self._reached[name].set()
            if name in self.plays:
                result = await self.plays[name](self.calls.count(name))
            else:
                result = _RESULTS.get(name)
            # Only an end that was not interrupted has been written.
            self.ends += [argument for argument in arguments if isinstance(argument, OperationEnd)]
            return result

        # Temporal converts arguments by what it reads here.
        stand_in.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        stand_in.__annotations__ = hints
        return activity.defn(name=name)(stand_in)

    # What the interceptor asks of `Records`.

    async def begin_step(self, step: StepRun) -> int:
        self.steps[step.activity_id].append("running")
        return self.steps[step.activity_id].count("running")

    async def renew_step(self, step: StepRun) -> None:
        pass

    async def detail_step(self, step: StepRun, detail: str) -> None:
        pass

    async def end_step(self, step: StepRun, detail: str | None = None) -> None:
        self.steps[step.activity_id].append("succeeded")

    async def fail_step(self, step: StepRun, failure: StepFailure) -> None:
        self.steps[step.activity_id].append(f"failed: {failure.message}")


def fails(error: Exception, times: int | None = None) -> Play:
    """Fails at its first `times` tries, or at every one."""

    async def play(attempt: int) -> None:
        if times is None or attempt <= times:
            raise error

    return play


def gives(*results: Any) -> Play:
    """Gives one result after the other, the last for ever; one list of results is for one run."""
    left = list(results)

    async def play(_: int) -> Any:
        return left.pop(0) if len(left) > 1 else left[0]

    return play


async def until_cancelled(_: int) -> None:
    """Runs until it is cancelled; it learns of that from the answer to a heartbeat."""
    while True:
        activity.heartbeat()
        await asyncio.sleep(_BEAT_SECONDS)


def until(event: asyncio.Event, result: Any = None) -> Play:
    """Runs until the test lets it end."""

    async def play(_: int) -> Any:
        await event.wait()
        return result

    return play


@asynccontextmanager
async def working(
    client: Client, stand_ins: StandIns, task_queue: str, workflows: Sequence[type] = WORKFLOWS
) -> AsyncIterator[None]:
    """Our workflows and interceptor at work, with stand-ins for what they do."""
    async with AsyncExitStack() as workers:
        # Deliveries to endpoints that fail go on at the second.
        for queue in (task_queue, queue_for(task_queue, failing=True)):
            worker = Worker(
                client,
                task_queue=queue,
                workflows=workflows,
                activities=stand_ins.activities(),
                interceptors=[ActivityInterceptor(stand_ins)],  # type: ignore[arg-type]
                identity="worker",
                max_heartbeat_throttle_interval=timedelta(seconds=_BEAT_SECONDS),
                default_heartbeat_throttle_interval=timedelta(seconds=_BEAT_SECONDS),
            )
            await workers.enter_async_context(worker)
        yield


def order_for(resource_type: str, action: str, *, force: bool = False, number: int = 1) -> OperationOrder:
    """An order whose ids are the same at every recording."""
    operation_id = f"00000000-0000-7000-8000-{number:012}"
    return OperationOrder(
        operation_id=operation_id,
        organization_id="00000000-0000-7000-8000-00000000000a",
        resource_type=resource_type,
        resource_id="00000000-0000-7000-8000-00000000000b",
        action=action,
        force=force,
        workflow_id=workflow_id(resource_type, action, "acme", operation_id),
        resource_name="Acme",
        resource_slug="acme",
    )


def time_skipping_server() -> str:
    """The path of the server that waits for no timer."""
    beside = Path(sys.executable).with_name("temporal-test-server")
    found = str(beside) if beside.exists() else shutil.which("temporal-test-server")
    assert found, "temporal-test-server is missing: install the development requirements"
    return found
