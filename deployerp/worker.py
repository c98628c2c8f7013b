"""The Temporal workers: the only place that builds drivers, activities and Workers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import structlog
from temporalio.worker import Interceptor, Worker

from deployerp.activities.instances import InstanceActivities
from deployerp.activities.periodic import PeriodicActivities, PeriodicWork
from deployerp.activities.queries import Answers, serve_queries
from deployerp.activities.reaper import NodeReaper
from deployerp.activities.records import Records
from deployerp.activities.server_instances import ServerInstanceActivities
from deployerp.activities.servers import ServerActivities
from deployerp.activities.steps.hosts import Hosts
from deployerp.activities.steps.interceptor import ActivityInterceptor
from deployerp.activities.steps.nodes import Nodes
from deployerp.activities.sweep import Sweep
from deployerp.activities.webhooks.deliveries import WebhookActivities
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.sessions import open_database, session_factory
from deployerp.domain import tables  # noqa: F401  (foreign keys find every table)
from deployerp.drivers.clouds.libcloud import LibcloudClouds
from deployerp.drivers.temporal import Temporal, webhook_task_queue
from deployerp.drivers.web.http import WebhookSender
from deployerp.workflows import instances, periodic, servers, webhook_deliveries

log = structlog.get_logger()

_OPERATION_WORKFLOWS = (*servers.WORKFLOWS, *instances.WORKFLOWS, *periodic.WORKFLOWS)
WORKFLOWS = (*_OPERATION_WORKFLOWS, *webhook_deliveries.WORKFLOWS)
# A step waits most of its time; those on one server share its SSH connection.
_STEPS_AT_ONCE = 100
# Turns of as many webhook endpoints: what is slow is their receivers.
_TURNS_AT_ONCE = 500
# Temporal gives up on a workflow task after ten seconds, and all of them share one core: of many at once, as
# they come when a worker starts, each would take longer, be given up and begin anew, without end.
_WORKFLOW_TASKS_AT_ONCE = 8
# Of endpoints that fail: however many there are, they leave most of the process to those that work.
_FAILING_TURNS_AT_ONCE, _FAILING_WORKFLOW_TASKS_AT_ONCE = 16, 2
_SWEEP_TIMEOUT = 120
_RECONNECT_SECONDS = 1.0
_GRACE = timedelta(seconds=10)


@asynccontextmanager
async def open_worker(settings: Settings, interceptors: Sequence[Interceptor] = ()) -> AsyncIterator[None]:
    """A running worker that has prepared its namespace and swept; `interceptors` come innermost.

    Waits for Temporal as long as it is not there.
    """
    async with _working(settings, await _reach(settings), interceptors):
        yield


@asynccontextmanager
async def _working(
    settings: Settings, temporal: Temporal, interceptors: Sequence[Interceptor] = ()
) -> AsyncIterator[None]:
    database = open_database(settings.database_url)
    await temporal.ensure_search_attributes()
    sessions = session_factory(database)
    records = Records(sessions, temporal)
    vault = Vault(settings.encryption_keys)
    clouds = LibcloudClouds({"docker": {"image": settings.node_image}}, settings.allowed_networks)
    nodes = Nodes(records, clouds, vault)
    hosts = Hosts(vault, nodes)
    sweep = Sweep(sessions, records, temporal, settings)
    reaper = NodeReaper(sessions, clouds, vault)
    works = {
        "sweep": PeriodicWork(lambda _: sweep.sweep(), settings.sweep_seconds, timeout=_SWEEP_TIMEOUT),
        # Clouds count the calls of an account, and what is looked for is rare.
        "reap": PeriodicWork(lambda _: reaper.reap(), interval=300, timeout=600),
    }
    all_interceptors = [ActivityInterceptor(records), *interceptors]
    operations = _worker(
        temporal,
        settings.temporal_task_queue,
        _OPERATION_WORKFLOWS,
        [
            records,
            PeriodicActivities(works),
            ServerActivities(records, nodes, hosts, vault, settings),
            ServerInstanceActivities(records, hosts, temporal),
            InstanceActivities(records, hosts, vault, settings),
        ],
        all_interceptors,
        at_once=_STEPS_AT_ONCE,
    )
    sending = WebhookActivities(sessions, vault, _sender(settings), temporal, settings)
    webhooks = _worker(
        temporal,
        webhook_task_queue(settings.temporal_task_queue),
        webhook_deliveries.WORKFLOWS,
        [sending],
        all_interceptors,
        at_once=_TURNS_AT_ONCE,
    )
    failing_webhooks = _worker(
        temporal,
        webhook_task_queue(settings.temporal_task_queue, failing=True),
        webhook_deliveries.WORKFLOWS,
        [sending],
        all_interceptors,
        at_once=_FAILING_TURNS_AT_ONCE,
        workflow_tasks_at_once=_FAILING_WORKFLOW_TASKS_AT_ONCE,
    )
    try:
        answers = Answers(clouds, vault)
        async with (
            serve_queries(answers, vault, settings.worker_host, settings.worker_port),
            operations,
            webhooks,
            failing_webhooks,
        ):
            await temporal.ensure_periodic_work()
            yield
    finally:
        await hosts.close()
        await database.dispose()


def _worker(
    temporal: Temporal,
    task_queue: str,
    workflows: Sequence[type],
    groups: Sequence[object],
    interceptors: Sequence[Interceptor],
    *,
    at_once: int,
    workflow_tasks_at_once: int = _WORKFLOW_TASKS_AT_ONCE,
) -> Worker:
    return Worker(
        temporal.client,
        task_queue=task_queue,
        workflows=workflows,
        activities=[activity for group in groups for activity in activities_of(group)],
        interceptors=interceptors,
        max_concurrent_activities=at_once,
        max_concurrent_workflow_tasks=workflow_tasks_at_once,
        # A cancellation reaches a step with the answer to a heartbeat, so answers must come often.
        max_heartbeat_throttle_interval=timedelta(seconds=2),
        default_heartbeat_throttle_interval=timedelta(seconds=2),
        graceful_shutdown_timeout=_GRACE,
    )


def activities_of(group: object) -> list[Callable[..., Any]]:
    """The methods of a group that are declared as activities."""
    methods = (getattr(group, name) for name in dir(group) if not name.startswith("_"))
    return [method for method in methods if hasattr(method, "__temporal_activity_definition")]


def _sender(settings: Settings) -> WebhookSender:
    return WebhookSender(settings.allowed_networks, settings.webhook_timeout_seconds)


async def _reach(settings: Settings) -> Temporal:
    waiting = False
    while True:
        try:
            return await Temporal.open(settings, lazy=False)
        except RuntimeError:
            if not waiting:
                log.warning("waiting for Temporal", address=settings.temporal_address)
            waiting = True
            await asyncio.sleep(_RECONNECT_SECONDS)


async def _reach_before(settings: Settings, stop: asyncio.Event) -> Temporal | None:
    """Temporal; or None when `stop` is set first, also while a server that hangs is asked."""
    reaching = asyncio.create_task(_reach(settings))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((reaching, stopping), return_when=asyncio.FIRST_COMPLETED)
        return await reaching if reaching.done() else None
    finally:
        reaching.cancel()
        stopping.cancel()


async def run_worker(settings: Settings, stop: asyncio.Event) -> None:
    """Works until `stop` is set, then lets running steps end."""
    temporal = await _reach_before(settings, stop)
    if temporal is None:
        return
    async with _working(settings, temporal):
        log.info("worker runs", task_queue=settings.temporal_task_queue)
        await stop.wait()
