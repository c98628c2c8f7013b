"""Limits are exact over processes, and asking for them is cheap: counted in transactions, not in time."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from deployerp.api.access import rate_limits
from deployerp.api.access.rate_limits import Limiter, RateLimitStatus
from deployerp.database.sessions import SessionFactory, open_database, session_factory
from deployerp.domain.organizations import Organization
from deployerp.domain.plans import HOUR, MINUTE, PLAN_LIMITS, Limits
from deployerp.domain.rate_windows import (
    RateWindow,
    WindowUsage,
    forget_ended,
    lock_windows,
    open_connections,
    replace_windows,
    write_windows,
)
from tests.conftest import free_port

STARTER = PLAN_LIMITS["starter"]
on_postgres = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Clock:
    """Stands still until a test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **time: float) -> None:
        self.now += timedelta(**time)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[SessionFactory]:
    database = open_database(url)
    yield session_factory(database)
    await database.dispose()


@pytest.fixture
async def other_sessions(database_url: str) -> AsyncIterator[SessionFactory]:
    """Those of another process."""
    async with opened(database_url) as factory:
        yield factory


@pytest.fixture
def clock() -> Clock:
    return Clock()


Process = Callable[..., Limiter]


@pytest.fixture
async def process(database_url: str) -> AsyncIterator[Process]:
    """Makes limiters as API processes have them."""
    async with AsyncExitStack() as stack:

        def begin(sessions: SessionFactory, **given: Any) -> Limiter:
            if not database_url.startswith("postgresql"):
                return Limiter(sessions, **given)
            connections = open_connections(database_url)
            stack.push_async_callback(connections.close)
            return Limiter(sessions, connections, **given)

        yield begin


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the database has been asked for a share, and by what."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Awaitable[Any]]:
        real = getattr(rate_limits, name)

        async def ask(*given: Any) -> Any:
            counts[name] += 1
            return await real(*given)

        return ask

    for name in ("lock_windows", "replace_windows"):
        monkeypatch.setattr(rate_limits, name, counted(name))
    return counts


async def admitted(limiter: Limiter, times: int, limits: Limits, subject: str = "one") -> int:
    """How many of so many requests, one after the other, are admitted."""
    standings = [await limiter.admit(subject, limits) for _ in range(times)]
    return sum(standing.admitted for standing in standings if standing)


async def standing_of(limiter: Limiter, limits: Limits) -> RateLimitStatus:
    standing = await limiter.admit("one", limits)
    assert standing is not None
    return standing


async def spent(sessions: SessionFactory, subject: str = "one") -> dict[int, int]:
    """By the windows' seconds, what the database says."""
    async with sessions() as session:
        rows = await session.scalars(select(RateWindow).where(col(RateWindow.subject) == subject))
        return {row.seconds: row.spent for row in rows}


async def test_two_processes_together_admit_exactly_the_limit(
    sessions: SessionFactory, other_sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiters = [process(each, clock=clock) for each in (sessions, other_sessions)]
    standings = await asyncio.gather(*(limiters[i % 2].admit("one", STARTER) for i in range(1500)))
    assert Counter(standing.admitted for standing in standings if standing) == {True: 100, False: 1400}
    # What was refused counts in neither window.
    assert await spent(sessions) == {MINUTE: 100, HOUR: 100}


PROCESS = """
import asyncio, sys
from datetime import datetime
from deployerp.api.access.rate_limits import Limiter
from deployerp.database.sessions import open_database, session_factory
from deployerp.domain.plans import PLAN_LIMITS
from deployerp.domain.rate_windows import open_connections

async def main(url, now):
    database = open_database(url)
    connections = open_connections(url) if url.startswith("postgresql") else None
    limiter = Limiter(session_factory(database), connections, clock=lambda: datetime.fromisoformat(now))
    await limiter.admit("warm", PLAN_LIMITS["starter"])
    print("ready", flush=True)
    sys.stdin.readline()
    asked = (limiter.admit("one", PLAN_LIMITS["starter"]) for _ in range(750))
    print(sum(standing.admitted for standing in await asyncio.gather(*asked)))
    if connections:
        await connections.close()
    await database.dispose()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_of_the_system_admit_exactly_the_limit(
    database_url: str, sessions: SessionFactory
) -> None:
    arguments = (sys.executable, "-W", "error", "-c", PROCESS, database_url, NOON.isoformat())
    pipe = asyncio.subprocess.PIPE
    processes = [await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe) for _ in range(2)]
    for process in processes:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
    told = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(int(output) for output, _ in told) == 100
    assert await spent(sessions) == {MINUTE: 100, HOUR: 100}


@pytest.mark.parametrize("first", [1, 3, 40])
async def test_nothing_is_lost_to_a_process_that_is_asked_no_more(
    sessions: SessionFactory, other_sessions: SessionFactory, clock: Clock, first: int, process: Process
) -> None:
    left, right = process(sessions, clock=clock), process(other_sessions, clock=clock)
    both = await admitted(left, first, STARTER) + await admitted(right, 200, STARTER)
    # What the first has at hand is at most what it has used, and never more than a part of what is left.
    assert 100 - min(first - 1, 4) <= both <= 100
    assert both + await admitted(left, 200, STARTER) == 100


async def test_a_window_begins_anew_with_the_first_request_after_its_end(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter, limits = process(sessions, clock=clock), Limits(5, None)
    clock.pass_by(seconds=17)
    assert await admitted(limiter, 10, limits) == 5
    clock.pass_by(seconds=59.999)
    assert await admitted(limiter, 10, limits) == 0
    clock.pass_by(seconds=33)
    assert await admitted(limiter, 10, limits) == 5
    clock.pass_by(seconds=59.999)
    assert await admitted(limiter, 10, limits) == 0
    clock.pass_by(seconds=0.001)
    assert await admitted(limiter, 10, limits) == 5


async def test_the_hour_refuses_what_the_minute_would_admit(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter, limits = process(sessions, clock=clock), Limits(4, 6)
    assert await admitted(limiter, 10, limits) == 4
    clock.pass_by(seconds=60)
    assert await admitted(limiter, 10, limits) == 2
    clock.pass_by(seconds=60)
    refused = await standing_of(limiter, limits)
    assert (refused.admitted, refused.limit, refused.remaining, refused.reset) == (False, 6, 0, 3480)
    clock.pass_by(seconds=3479)
    assert await admitted(limiter, 10, limits) == 0
    clock.pass_by(seconds=1)
    assert await admitted(limiter, 10, limits) == 4
    assert await spent(sessions) == {MINUTE: 4, HOUR: 4}


async def test_a_refused_request_does_not_begin_a_window(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    assert await admitted(process(sessions, clock=clock), 9, Limits(None, 6)) == 6
    limiter, limits = process(sessions, clock=clock), Limits(4, 6)
    clock.pass_by(seconds=3590)
    assert not (await standing_of(limiter, limits)).admitted
    clock.pass_by(seconds=10)
    standing = await standing_of(limiter, limits)
    assert (standing.admitted, standing.limit, standing.reset) == (True, 4, 60)


async def test_what_a_minute_leaves_at_hand_is_good_for_the_hour(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter, limits = process(sessions, clock=clock), Limits(100, 60)
    for _ in range(30):
        # The second has taken two, and one of them is not used.
        assert await admitted(limiter, 2, limits) == 2
        clock.pass_by(seconds=60)
    assert await admitted(limiter, 1, limits) == 0


async def test_both_windows_spent_end_with_the_last_of_them(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter, limits = process(sessions, clock=clock), Limits(3, 3)
    assert await admitted(limiter, 4, limits) == 3
    assert (await standing_of(limiter, limits)).reset == HOUR


async def test_without_limits_nothing_is_counted(sessions: SessionFactory, process: Process) -> None:
    limiter = process(sessions)
    assert await limiter.admit("one", PLAN_LIMITS["enterprise"]) is None
    assert await spent(sessions) == {}
    assert not limiter.is_spent("one")


async def test_an_agreement_of_its_own_holds(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter = process(sessions, clock=clock)
    hourly = Organization(name="a", slug="a", plan="enterprise", requests_per_hour=3)
    assert await admitted(limiter, 5, hourly.limits, "a") == 3
    assert await spent(sessions, "a") == {HOUR: 3}
    less = Organization(name="b", slug="b", plan="starter", requests_per_minute=7)
    assert await admitted(limiter, 9, less.limits, "b") == 7
    shut = Organization(name="c", slug="c", plan="starter", requests_per_minute=0)
    assert await admitted(limiter, 5, shut.limits, "c") == 0
    assert await spent(sessions, "c") == {MINUTE: 0, HOUR: 0}


async def test_other_limits_hold_from_the_next_request_on(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter = process(sessions, clock=clock)
    assert await admitted(limiter, 9, Limits(5, None)) == 5
    assert await admitted(limiter, 9, Limits(8, None)) == 3
    assert await admitted(limiter, 9, Limits(2, None)) == 0
    assert await admitted(limiter, 9, Limits(8, 100)) == 0
    assert await limiter.admit("one", Limits(None, None)) is None


async def test_a_process_admits_from_its_share_without_asking_again(
    sessions: SessionFactory, clock: Clock, process: Process, asked: Counter[str]
) -> None:
    limiter = process(sessions, clock=clock)
    assert await admitted(limiter, 1000, Limits(1_000_000, None)) == 1000
    # Shares of 1, 2, 4, ... 512.
    assert asked.total() == 10


async def test_a_spent_window_is_remembered(
    sessions: SessionFactory, clock: Clock, process: Process, asked: Counter[str]
) -> None:
    limiter = process(sessions, clock=clock)
    assert not limiter.is_spent("one")
    assert await admitted(limiter, 5, Limits(5, 100)) == 5
    assert limiter.is_spent("one")
    before = asked.total()
    assert await admitted(limiter, 100, Limits(5, 100)) == 0
    assert asked.total() == before
    clock.pass_by(seconds=60)
    assert not limiter.is_spent("one")


async def test_requests_at_once_share_one_transaction(
    sessions: SessionFactory, clock: Clock, process: Process, asked: Counter[str]
) -> None:
    limiter = process(sessions, clock=clock)
    standings = await asyncio.gather(*(limiter.admit("one", Limits(10_000, None)) for _ in range(50)))
    assert all(standing and standing.admitted for standing in standings)
    assert asked.total() == 1
    assert await spent(sessions) == {MINUTE: 50}


@on_postgres
async def test_a_share_is_one_message_while_no_other_process_takes_one(
    sessions: SessionFactory,
    other_sessions: SessionFactory,
    clock: Clock,
    process: Process,
    asked: Counter[str],
) -> None:
    alone, other = process(sessions, clock=clock), process(other_sessions, clock=clock)
    assert await admitted(alone, 500, Limits(1000, 10_000)) == 500
    # The first of all has to look what there is.
    assert asked.pop("lock_windows") == 1
    assert await admitted(other, 1, Limits(1000, 10_000)) == 1
    asked.clear()
    assert await admitted(alone, 600, Limits(1000, 10_000)) == 499
    assert asked["lock_windows"] <= 2 < asked["replace_windows"]
    assert await spent(sessions) == {MINUTE: 1000, HOUR: 1000}


@on_postgres
async def test_windows_that_another_process_has_changed_are_not_replaced(
    postgres_url: str, sessions: SessionFactory, clock: Clock
) -> None:
    await admitted(Limiter(sessions, clock=clock), 1, Limits(5, 50))
    kept = {MINUTE: WindowUsage(NOON, 1), HOUR: WindowUsage(NOON, 1)}
    wanted = {MINUTE: WindowUsage(NOON, 3), HOUR: WindowUsage(NOON, 3)}
    before, earlier = WindowUsage(NOON, 0), WindowUsage(NOON - timedelta(microseconds=1), 1)
    connections = open_connections(postgres_url)
    for known in ({MINUTE: before}, {HOUR: before}, {MINUTE: earlier}, {HOUR: earlier}):
        assert not await replace_windows(connections, "one", kept | known, wanted)
    assert not await replace_windows(connections, "two", kept, wanted)
    assert (await spent(sessions, "one"), await spent(sessions, "two")) == ({MINUTE: 1, HOUR: 1}, {})
    assert await replace_windows(connections, "one", kept, wanted)
    assert await spent(sessions) == {MINUTE: 3, HOUR: 3}
    # One who waits for the lock sees what was written by then.
    taken = await asyncio.gather(
        *(replace_windows(connections, "one", wanted, {**wanted, HOUR: WindowUsage(NOON, n)}) for n in (4, 5))
    )
    assert sorted(taken) == [False, True]
    await connections.close()


async def test_a_request_that_is_given_up_takes_no_place(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter, limits = process(sessions, clock=clock), Limits(20, None)
    asked = [asyncio.create_task(limiter.admit("one", limits)) for _ in range(10)]
    await asyncio.sleep(0)
    for each in asked[:5]:
        each.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True] * 5 + [False] * 5
    assert await admitted(limiter, 50, limits) == 15


async def test_a_failure_is_told_to_all_who_wait_and_is_over_with_them(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    async with opened(f"postgresql+asyncpg://nobody@127.0.0.1:{free_port()}/nothing") as failing:
        chosen = [failing]
        limiter = process(lambda: chosen[0](), clock=clock)
        asked = (limiter.admit("one", Limits(5, None)) for _ in range(20))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, OSError) for answer in answers), answers
        chosen[0] = sessions
        assert await admitted(limiter, 9, Limits(5, None)) == 5


async def test_memory_is_bounded_and_counts_stay_exact(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter, limits = process(sessions, clock=clock, capacity=3), Limits(2, None)
    subjects = [f"address:203.0.113.{i}" for i in range(6)]
    for _ in range(4):
        for subject in subjects:
            await limiter.admit(subject, limits)
    assert [*limiter._tallies] == subjects[3:]
    # The most recently used stay.
    await limiter.admit(subjects[3], limits)
    await limiter.admit("new", limits)
    assert [*limiter._tallies] == [subjects[5], subjects[3], "new"]
    for subject in subjects:
        assert await spent(sessions, subject) == {MINUTE: 2}
        assert await admitted(limiter, 1, limits, subject) == 0


@pytest.mark.parametrize("seconds", [-20, -0.001, 0.001, 20])
async def test_clocks_that_differ_share_one_window(
    sessions: SessionFactory, other_sessions: SessionFactory, clock: Clock, seconds: float, process: Process
) -> None:
    limits, theirs = Limits(10, 100), Clock(clock.now + timedelta(seconds=seconds))
    left, right = process(sessions, clock=clock), process(other_sessions, clock=theirs)
    assert await admitted(left, 3, limits) + await admitted(right, 3, limits) == 6
    assert await admitted(left, 20, limits) + await admitted(right, 20, limits) == 4


async def test_a_window_from_far_in_the_future_shuts_nobody_out(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limits, wrong = Limits(5, None), Clock(clock.now + timedelta(days=3000))
    assert await admitted(process(sessions, clock=wrong), 9, limits) == 5
    assert await admitted(process(sessions, clock=clock), 9, limits) == 5


async def test_the_headers_of_the_tighter_window(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter, limits = process(sessions, clock=clock), Limits(3, 1000)
    end = int(NOON.timestamp()) + 60
    policy = b'"minute";q=3;w=60, "hour";q=1000;w=3600'
    assert (await standing_of(limiter, limits)).headers() == [
        (b"x-ratelimit-limit", b"3"),
        (b"x-ratelimit-remaining", b"2"),
        (b"x-ratelimit-reset", b"%d" % end),
        (b"ratelimit-policy", policy),
        (b"ratelimit", b'"minute";r=2;t=60'),
    ]
    await admitted(limiter, 2, limits)
    clock.pass_by(seconds=29.5)
    refused = await standing_of(limiter, limits)
    assert (refused.admitted, refused.limit, refused.remaining, refused.reset) == (False, 3, 0, 31)
    assert refused.headers() == [
        (b"x-ratelimit-limit", b"3"),
        (b"x-ratelimit-remaining", b"0"),
        (b"x-ratelimit-reset", b"%d" % end),
        (b"ratelimit-policy", policy),
        (b"ratelimit", b'"minute";r=0;t=31'),
    ]


async def test_a_window_that_begins_between_seconds_is_never_told_to_end_early(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    clock.pass_by(seconds=0.25)
    limiter, limits = process(sessions, clock=clock), Limits(3, 1000)
    standing = await standing_of(limiter, limits)
    assert (standing.reset, standing.reset_at) == (60, int(NOON.timestamp()) + 61)
    clock.pass_by(seconds=59.9)
    assert (await standing_of(limiter, limits)).reset == 1
    clock.now = NOON + timedelta(seconds=61)
    assert (await standing_of(limiter, limits)).remaining == 2


async def test_the_hour_is_told_when_it_is_the_tighter(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter, limits = process(sessions, clock=clock), Limits(100, 30)
    headers = dict((await standing_of(limiter, limits)).headers())
    assert headers[b"x-ratelimit-limit"] == b"30"
    assert headers[b"ratelimit"] == b'"hour";r=29;t=3600'
    assert headers[b"ratelimit-policy"] == b'"minute";q=100;w=60, "hour";q=30;w=3600'
    alone = await limiter.admit("other", Limits(None, 30))
    assert alone is not None
    assert dict(alone.headers())[b"ratelimit-policy"] == b'"hour";q=30;w=3600'


async def forgotten(sessions: SessionFactory, now: datetime) -> int:
    async with sessions() as session, session.begin():
        return await forget_ended(session, now)


async def test_windows_that_have_ended_are_forgotten(
    sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiter = process(sessions, clock=clock)
    await admitted(limiter, 1, Limits(5, 50), "one")
    clock.pass_by(seconds=30)
    await admitted(limiter, 1, Limits(5, 50), "two")
    # A minute longer than they run.
    assert await forgotten(sessions, NOON + timedelta(seconds=120)) == 0
    assert await forgotten(sessions, NOON + timedelta(seconds=120.001)) == 1
    assert (await spent(sessions, "one"), await spent(sessions, "two")) == ({HOUR: 1}, {MINUTE: 1, HOUR: 1})
    assert await forgotten(sessions, NOON + timedelta(hours=1, seconds=89)) == 2
    assert (await spent(sessions, "one"), await spent(sessions, "two")) == ({}, {HOUR: 1})
    # Who has lost one of two windows goes on with the other.
    clock.now = NOON + timedelta(minutes=50)
    assert await admitted(limiter, 9, Limits(5, 50), "two") == 5
    assert await spent(sessions, "two") == {MINUTE: 5, HOUR: 6}


async def test_the_ended_are_forgotten_so_many_at_a_time(
    sessions: SessionFactory, clock: Clock, monkeypatch: pytest.MonkeyPatch, process: Process
) -> None:
    monkeypatch.setattr("deployerp.domain.rate_windows._BATCH", 2)
    limiter = process(sessions, clock=clock)
    for i in range(5):
        await admitted(limiter, 1, Limits(5, None), f"{i}")
    later = NOON + timedelta(hours=2)
    assert [await forgotten(sessions, later) for _ in range(4)] == [2, 2, 1, 0]


async def test_what_is_in_use_is_not_waited_for(postgres_url: str) -> None:
    later = NOON + timedelta(hours=2)
    async with opened(postgres_url) as sessions:
        await admitted(Limiter(sessions, clock=Clock()), 1, STARTER)
        async with sessions() as using, using.begin():
            found = await lock_windows(using, "one", [MINUTE, HOUR], NOON)
            async with asyncio.timeout(30):
                assert await forgotten(sessions, later) == 0
            await write_windows(using, "one", {MINUTE: found[MINUTE]._replace(started_at=later)})
        assert await forgotten(sessions, later) == 1
        assert await spent(sessions) == {MINUTE: 1}


async def test_counts_are_exact_while_windows_are_forgotten(
    sessions: SessionFactory, other_sessions: SessionFactory, clock: Clock, process: Process
) -> None:
    limiters = [process(each, clock=clock) for each in (sessions, other_sessions) * 2]
    for _ in range(15):
        *taken, _ = await asyncio.gather(
            *(admitted(limiter, 12, Limits(20, 1000)) for limiter in limiters),
            forgotten(sessions, clock.now),
        )
        assert sum(taken) == 20
        clock.pass_by(seconds=121)
