"""What an operation costs that does nothing: the API's answer, the way to its start, and each step.

The activities of servers are replaced with ones that do nothing; all else is the real thing. Beside it, in
turns, runs a bare workflow with as many activities that do nothing, which is what Temporal itself costs.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from alembic import command as alembic
from control_plane import client_of, percentile, running, spread
from rich.console import Console
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

from deployerp.activities.records import Records
from deployerp.activities.servers import ServerActivities
from deployerp.activities.steps.interceptor import ActivityInterceptor
from deployerp.core import logging
from deployerp.core.errors import DeployError
from deployerp.core.settings import Settings
from deployerp.database.sessions import open_database, session_factory
from deployerp.domain.operations.messages import OperationOrder
from deployerp.drivers.temporal import Temporal
from deployerp.embedded import control_plane
from deployerp.embedded.demo import Api
from deployerp.migrations import configuration
from deployerp.worker import activities_of
from deployerp.workflows.servers import WORKFLOWS

REQUESTS = 300
OPERATIONS = 40
_WARM_UP = 5
_SECONDS = 170
_CONSOLE = Console(stderr=True, highlight=False)


@activity.defn
async def nothing(order: OperationOrder) -> None:
    pass


@workflow.defn(sandboxed=False)
class Bare:
    """As many activities as an operation has, and nothing around them."""

    @workflow.run
    async def run(self, order: OperationOrder, activities: int) -> None:
        for _ in range(activities):
            await workflow.execute_activity(nothing, order, start_to_close_timeout=timedelta(seconds=30))


@dataclass(frozen=True)
class Operation:
    """Seconds of one operation: to its start, from there to its end, and all of a bare workflow's."""

    pending: float
    running: float
    steps: int
    bare: float


def stand_ins() -> list[Callable[..., Any]]:
    """The activities of servers, by name, that do nothing."""
    return [_nothing_named(each.__name__) for each in activities_of(ServerActivities)]


def _nothing_named(name: str) -> Callable[..., Any]:
    async def stand_in(order: OperationOrder) -> None:
        pass

    return activity.defn(name=name)(stand_in)


class Requests:
    """Asks for servers, over and over."""

    def __init__(self, api: Api, provider_id: str) -> None:
        self._api = api
        self._provider_id = provider_id

    @classmethod
    async def of(cls, api: Api) -> "Requests":
        name = f"here-{uuid4().hex[:8]}"
        provider = await api.call("POST", "/v1/providers", {"name": name, "kind": "docker"})
        return cls(api, provider["id"])

    async def server(self) -> Any:
        body = {"name": f"bench-{uuid4().hex[:12]}", "providerId": self._provider_id, "size": "small"}
        return await self._api.call("POST", "/v1/servers", body)

    async def operation(self) -> dict[str, Any]:
        """One that has ended, with its steps."""
        begun = await self.server()
        await self._api.follow(begun["operation"]["id"], lambda _: None)
        ended: dict[str, Any] = await self._api.call("GET", f"/v1/operations/{begun['operation']['id']}")
        return ended


async def answer_times(api: Api, process_id: int) -> tuple[list[float], float]:
    """Seconds from each request to its 202, one after the other; and CPU seconds of the API for each."""
    requests = await Requests.of(api)
    for _ in range(_WARM_UP):
        await requests.server()
    seconds = []
    spent = _cpu_seconds(process_id)
    for _ in range(REQUESTS):
        started = time.perf_counter()
        await requests.server()
        seconds.append(time.perf_counter() - started)
    return seconds, (_cpu_seconds(process_id) - spent) / REQUESTS


def _cpu_seconds(process_id: int) -> float:
    """User and system time of a process and its threads so far."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def operations(api: Api, settings: Settings) -> list[Operation]:
    """Operations and bare workflows in turns, each pair with as many activities."""
    client = await Client.connect(settings.temporal_address)
    database = open_database(settings.database_url)
    records = Records(session_factory(database), Temporal(client, settings.temporal_task_queue))
    worker = Worker(
        client,
        task_queue=settings.temporal_task_queue,
        workflows=[*WORKFLOWS, Bare],
        activities=[*activities_of(records), *stand_ins(), nothing],
        interceptors=[ActivityInterceptor(records)],
    )
    requests = await Requests.of(api)
    measured = []
    async with worker:
        for _ in range(_WARM_UP + OPERATIONS):
            ended = await requests.operation()
            steps = len(ended["steps"])
            # The claim and the end are activities too.
            bare = await _bare(client, settings.temporal_task_queue, steps + 2)
            created, started, finished = (
                datetime.fromisoformat(ended[name]).timestamp()
                for name in ("createdAt", "startedAt", "finishedAt")
            )
            measured.append(Operation(started - created, finished - started, steps, bare))
    await database.dispose()
    return measured[_WARM_UP:]


async def _bare(client: Client, queue: str, activities: int) -> float:
    order = OperationOrder(str(uuid4()), str(uuid4()), "server", str(uuid4()), "provision")
    started = time.time()
    await client.execute_workflow(Bare.run, args=[order, activities], id=f"bare-{uuid4()}", task_queue=queue)
    return time.time() - started


def summary(answers: list[float], cpu: float, measured: list[Operation]) -> dict[str, Any]:
    whole = statistics.median(each.pending + each.running for each in measured)
    bare = statistics.median(each.bare for each in measured)
    activities = measured[0].steps + 2
    each_activity = [(each.pending + each.running - each.bare) * 1000 / activities for each in measured]
    return {
        "bench": "operations",
        "answer_p50_ms": round(percentile(answers, 0.5) * 1000, 1),
        "answer_p99_ms": round(percentile(answers, 0.99) * 1000, 1),
        "answer_cpu_ms": round(cpu * 1000, 2),
        "pending_to_running_ms": spread([each.pending * 1000 for each in measured], 1),
        "activities": activities,
        "operation_ms": spread([(each.pending + each.running) * 1000 for each in measured], 1),
        "bare_workflow_ms": spread([each.bare * 1000 for each in measured], 1),
        "added_per_activity_ms": spread(each_activity, 1),
        "ratio": round(whole / bare, 2),
    }


def show(figures: dict[str, Any]) -> None:
    print_ = _CONSOLE.print
    print_(
        f"POST to 202: {figures['answer_p50_ms']} ms (p50), {figures['answer_p99_ms']} ms (p99),"
        f" {figures['answer_cpu_ms']} ms of the API's CPU, {REQUESTS} requests one after the other"
    )
    print_(f"Written to running: {_told(figures['pending_to_running_ms'])}")
    print_(f"An operation of {figures['activities']} activities: {_told(figures['operation_ms'])}")
    print_(f"A bare workflow of as many: {_told(figures['bare_workflow_ms'])}")
    print_(
        f"An operation takes {figures['ratio']} times the bare workflow:"
        f" {_told(figures['added_per_activity_ms'])} more for each activity"
    )


def _told(figures: dict[str, float]) -> str:
    return f"{figures['median']} ms ({figures['min']} to {figures['max']})"


async def measure(home: Path) -> dict[str, Any]:
    ports = control_plane.Ports.free()
    settings = control_plane.embedded_settings(home, ports)
    # Each part has a queue of its own: what the first leaves waiting must not hold up the second.
    first, second = (
        settings.model_copy(update={"temporal_task_queue": name}) for name in ("answers", "operations")
    )
    async with control_plane.services(settings, ports):
        await asyncio.to_thread(alembic.upgrade, configuration(settings.database_url), "head")
        async with (
            running(home, "serve", environment=control_plane.environment_of(first)) as process,
            client_of(home, ports.api, process) as api,
        ):
            answers, cpu = await answer_times(api, process.pid)
        async with (
            running(home, "serve", environment=control_plane.environment_of(second)) as process,
            client_of(home, ports.api, process) as api,
        ):
            return summary(answers, cpu, await operations(api, second))


async def main() -> int:
    logging.configure("WARNING")
    with tempfile.TemporaryDirectory(prefix="deployerp-bench-") as home:
        try:
            async with asyncio.timeout(_SECONDS):
                figures = await measure(Path(home))
        except (DeployError, TimeoutError) as error:
            reason = error.message if isinstance(error, DeployError) else f"not done within {_SECONDS} s"
            sys.stdout.write(json.dumps({"bench": "operations", "error": reason}) + "\n")
            return 1
    show(figures)
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
