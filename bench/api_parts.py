"""All that runs while the API is measured: a seeded PostgreSQL, Temporal, the API, the bare endpoints."""

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import api_fleet
import asyncpg
import postgres
from alembic import command as alembic
from api_cases import CREATORS, Side
from api_load import Load, child, cpu_seconds, machine_seconds, once, run
from control_plane import percentile, running
from temporalio.client import Client

from deployerp.core.errors import Unavailable
from deployerp.core.settings import Settings
from deployerp.embedded import control_plane
from deployerp.migrations import configuration

_READY_SECONDS = 60
_QUIET_SECONDS = 60
# Less than this share of a core is quiet.
_QUIET_SHARE = 0.1
_READY = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True)
class Turn:
    """One side, asked for some seconds. CPU is per request, until all is quiet again."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    api_cpu_ms: float
    postgres_cpu_ms: float
    temporal_cpu_ms: float
    # What the one who asks spends of a core: where it is near 1, that is what is measured.
    client_busy: float
    quiet_after_seconds: float
    # Cores that were busy with what is no part of the bench.
    others_busy: float

    @property
    def cpu_ms(self) -> float:
        return self.api_cpu_ms + self.postgres_cpu_ms


@dataclass(frozen=True)
class Parts:
    """Where each side answers, and the processes that work for it."""

    ports: dict[Side, int]
    processes: dict[Side, int]
    database: postgres.Cluster
    temporal: int
    settings: Settings
    client: ProcessPoolExecutor
    fleet: api_fleet.Fleet
    seed_seconds: float

    async def turn(self, side: Side, requests: Sequence[bytes], status: int, seconds: float) -> Turn:
        """Raises `Unavailable` with the first answer of another status."""
        load = Load(self.ports[side], requests, status, seconds)
        before, others, began = self._spent(side), _others_seconds(), time.monotonic()
        answers = await asyncio.get_running_loop().run_in_executor(self.client, run, load)
        others = (_others_seconds() - others) / (time.monotonic() - began)
        quiet_after = await self._quiet(side)
        api, database, temporal = (
            1000 * (now - then) / answers.all_requests
            for now, then in zip(self._spent(side), before, strict=True)
        )
        return Turn(
            requests_per_second=len(answers.sorted_seconds) / answers.window,
            p50_ms=1000 * percentile(answers.sorted_seconds, 0.5),
            p99_ms=1000 * percentile(answers.sorted_seconds, 0.99),
            api_cpu_ms=api,
            postgres_cpu_ms=database,
            temporal_cpu_ms=temporal,
            client_busy=answers.cpu_seconds / answers.window,
            quiet_after_seconds=quiet_after,
            others_busy=others,
        )

    async def _quiet(self, side: Side) -> float:
        """Waits for what goes on after the answers, which is to be paid for too, and tells how long."""
        began = time.monotonic()
        while time.monotonic() - began < _QUIET_SECONDS:
            spent, since = sum(self._spent(side)), time.monotonic()
            await asyncio.sleep(0.2)
            if sum(self._spent(side)) - spent < _QUIET_SHARE * (time.monotonic() - since):
                break
        return time.monotonic() - began

    async def started_share(self) -> float | None:
        """Of the operations that the API took on, those whose workflow was started; the rest is left."""
        connection = await asyncpg.connect(self.database.dsn)
        operations = await connection.fetchval(
            "SELECT count(*) FROM operations WHERE requested_by IN (SELECT id FROM api_keys)"
        )
        await connection.close()
        client = await Client.connect(self.settings.temporal_address)
        started = await client.count_workflows(f"TaskQueue = '{self.settings.temporal_task_queue}'")
        return started.count / operations if operations else None

    def _spent(self, side: Side) -> tuple[float, float, float]:
        return cpu_seconds(self.processes[side]), cpu_seconds(self.database.pid), cpu_seconds(self.temporal)


@asynccontextmanager
async def parts(home: Path, size: api_fleet.Size) -> AsyncIterator[Parts]:
    """Runs them all for as long as the block lasts; no worker is among them. Raises `Unavailable`."""
    ports, bare_port = control_plane.Ports.free(), control_plane.Ports.free().api
    async with postgres.cluster(home / "postgres") as database:
        settings = control_plane.embedded_settings(home, ports).model_copy(
            update={"database_url": database.url}
        )
        await asyncio.to_thread(alembic.upgrade, configuration(database.url), "head")
        began = time.monotonic()
        fleet = await api_fleet.seed(database.dsn, settings, size, CREATORS)
        seconds = time.monotonic() - began
        environment = control_plane.environment_of(settings)
        # Whose workflows they are is told by the queue.
        bare_environment = environment | {"DEPLOYERP_TEMPORAL_TASK_QUEUE": "bare"}
        async with (
            control_plane.services(settings, ports),
            running(home, "serve", environment=environment) as api,
            _bare(home, database.dsn, bare_port, bare_environment) as bare,
        ):
            await _until_ready(home / "control-plane.log", api, ports.api)
            await _until_ready(home / "bare.log", bare, bare_port)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as client:
                yield Parts(
                    ports={"deployerp": ports.api, "bare": bare_port},
                    processes={"deployerp": api.pid, "bare": bare.pid},
                    database=database,
                    temporal=child("temporal"),
                    settings=settings,
                    client=client,
                    fleet=fleet,
                    seed_seconds=seconds,
                )


@asynccontextmanager
async def _bare(
    home: Path, dsn: str, port: int, environment: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    with (home / "bare.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(Path(__file__).with_name("api_peer.py"))),
            *(f"--dsn={dsn}", f"--port={port}"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | dict(environment),
            # Ctrl-C is ours to handle: it ends last.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _until_ready(log: Path, process: asyncio.subprocess.Process, port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not await asyncio.to_thread(_is_ready, port):
        if process.returncode is not None or time.monotonic() > deadline:
            told = await asyncio.to_thread(log.read_text)
            raise Unavailable(f"It did not start. {log.name} ends with:\n{told[-2000:]}")
        await asyncio.sleep(0.1)


def _is_ready(port: int) -> bool:
    try:
        return once(port, _READY)[0] == 200
    except OSError:
        return False


def _others_seconds() -> float:
    """What all that is not started by this process has spent so far."""
    return machine_seconds() - cpu_seconds(os.getpid())
