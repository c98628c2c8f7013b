"""Periodic work: one worker at a time runs the rounds of a shard."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import structlog
from temporalio import activity

from deployerp.core.errors import Unavailable
from deployerp.domain.periodic import Shard

log = structlog.get_logger()
# The activity ends then, and a newer worker can take the shard over.
SHIFT = timedelta(days=1)


@dataclass(frozen=True)
class PeriodicWork:
    """What is done in each round of a kind of work. `interval` and `timeout` are seconds."""

    run: Callable[[Shard], Awaitable[object]]
    interval: float
    # A round that hangs is given up, so that the next one runs.
    timeout: float


class PeriodicActivities:
    """Runs the periodic work of shards; `works` has each kind of work by its name."""

    def __init__(self, works: Mapping[str, PeriodicWork]) -> None:
        self._works = works

    @activity.defn
    async def keep_working(self, shard: Shard) -> None:
        """Runs rounds until its worker stops or the shift ends.

        The heartbeat is the lease of the shard. A round that fails is logged, and the next one runs.
        """
        work = self._works[shard.work]
        end = time.monotonic() + SHIFT.total_seconds()
        stopping = asyncio.ensure_future(activity.wait_for_worker_shutdown())
        try:
            while not stopping.done() and time.monotonic() < end:
                await _run_round(work, shard)
                await asyncio.wait((stopping,), timeout=work.interval)
        finally:
            stopping.cancel()


async def _run_round(work: PeriodicWork, shard: Shard) -> None:
    try:
        async with asyncio.timeout(work.timeout):
            await work.run(shard)
    except Unavailable as error:
        log.warning("a round of periodic work failed", shard=str(shard), reason=error.message)
    except Exception:
        log.exception("a round of periodic work failed", shard=str(shard))
