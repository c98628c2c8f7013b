"""The rounds of a shard of periodic work."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from temporalio.testing import ActivityEnvironment

from deployerp.activities import periodic
from deployerp.activities.periodic import PeriodicActivities, PeriodicWork
from deployerp.core.errors import Unavailable
from deployerp.domain.periodic import Shard, shards

SHARD = Shard("test", index=1, count=2)


async def work(
    rounds: Callable[[Shard], Awaitable[object]], until: asyncio.Event, *, timeout: float = 5
) -> None:
    """Has a shard worked on until `until` is set; then its worker stops."""
    environment = ActivityEnvironment()
    activities = PeriodicActivities({"test": PeriodicWork(rounds, interval=0, timeout=timeout)})
    working = asyncio.ensure_future(environment.run(activities.keep_working, SHARD))
    async with asyncio.timeout(10):
        await until.wait()
        environment.worker_shutdown()
        await working


async def test_a_round_that_fails_does_not_end_the_work() -> None:
    errors, done = [RuntimeError("broken"), Unavailable("away")], asyncio.Event()

    async def fail_twice(shard: Shard) -> None:
        assert shard == SHARD
        if errors:
            raise errors.pop()
        done.set()

    await work(fail_twice, done)


async def test_a_round_that_hangs_is_given_up_for_the_next() -> None:
    begun, done = 0, asyncio.Event()

    async def hang_once(_: Shard) -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            await asyncio.sleep(3600)
        done.set()

    await work(hang_once, done, timeout=0.05)


async def test_a_shift_ends_so_that_a_newer_worker_can_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "SHIFT", periodic.SHIFT * 0)
    activities = PeriodicActivities({"test": PeriodicWork(lambda _: asyncio.sleep(0), interval=0, timeout=5)})
    async with asyncio.timeout(5):
        await ActivityEnvironment().run(activities.keep_working, SHARD)


def test_every_shard_has_a_name_of_its_own() -> None:
    names = [str(shard) for shard in shards()]
    assert len(names) == len(set(names))
    assert all(0 <= shard.index < shard.count for shard in shards())
