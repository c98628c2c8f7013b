"""Periodic work: the rounds of a shard, one after the other, by one worker at a time."""

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
# After so long the activity ends and another begins: maybe of a worker that is newer.
SHIFT = timedelta(days=1)


@dataclass(frozen=True)
class Round:
    """What a shard of some work does each time its turn comes; `every` and `longest` are seconds."""

    run: Callable[[Shard], Awaitable[object]]
    every: float
    # A round that hangs for longer must not keep the next from its turn.
    longest: float


class PeriodicActivities:
    """Does the periodic work of shards, whose kinds are known by name."""

    def __init__(self, rounds: Mapping[str, Round]) -> None:
        self._rounds = rounds

    @activity.defn
    async def keep_working(self, shard: Shard) -> None:
        """Runs round after round, until its worker stops or the shift is over.

        The heartbeat is the lease of the shard. A round that fails is logged; the next may find that the
        cause has gone.
        """
        rounds = self._rounds[shard.work]
        over = time.monotonic() + SHIFT.total_seconds()
        stopping = asyncio.ensure_future(activity.wait_for_worker_shutdown())
        try:
            while not stopping.done() and time.monotonic() < over:
                await _try(rounds, shard)
                await asyncio.wait((stopping,), timeout=rounds.every)
        finally:
            stopping.cancel()


async def _try(rounds: Round, shard: Shard) -> None:
    try:
        async with asyncio.timeout(rounds.longest):
            await rounds.run(shard)
    except Unavailable as error:
        log.warning("a round of periodic work failed", shard=str(shard), reason=error.message)
    except Exception:
        log.exception("a round of periodic work failed", shard=str(shard))
