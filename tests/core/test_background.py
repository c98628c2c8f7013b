"""What is done beside the answers: some at once, the rest in its turn; one that fails breaks nothing."""

import asyncio
import inspect

import pytest

from deployerp.core import background
from deployerp.core.background import Background


class Works:
    """Works that are counted, and end when they may."""

    def __init__(self) -> None:
        self.begun, self.ended = 0, 0
        self.may_end = asyncio.Event()

    async def one(self) -> None:
        self.begun += 1
        await self.may_end.wait()
        self.ended += 1


async def test_a_burst_is_done_some_at_a_time_and_all_of_it() -> None:
    beside, works = Background(), Works()
    for _ in range(100):
        beside.run(works.one())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (works.begun, works.ended) == (8, 0)
    works.may_end.set()
    await beside.drain()
    assert (works.begun, works.ended) == (100, 100)


async def test_what_fails_makes_room_for_the_next() -> None:
    async def fail() -> None:
        raise RuntimeError("Temporal is away")

    beside, works = Background(), Works()
    works.may_end.set()
    for _ in range(20):
        beside.run(fail())
    beside.run(works.one())
    await beside.drain()
    assert works.ended == 1


async def test_more_than_a_thousand_are_left_for_the_sweep() -> None:
    beside, works = Background(), Works()
    for _ in range(1_200):
        beside.run(works.one())
    works.may_end.set()
    await beside.drain()
    assert works.ended == 1_000


async def test_the_end_waits_a_little_and_gives_up_what_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_DRAIN_SECONDS", 0.05)
    beside, works = Background(), Works()
    given = [works.one() for _ in range(20)]
    for work in given:
        beside.run(work)
    await beside.drain()
    assert (works.begun, works.ended) == (8, 0)
    # Those that had not begun as well.
    assert {inspect.getcoroutinestate(work) for work in given} == {inspect.CORO_CLOSED}
