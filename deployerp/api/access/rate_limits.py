"""Rate limits, exact over all API processes and nearly free.

A process takes a share of what is left of a subject's windows in one transaction, and admits from it
without asking the database again. The shares get smaller as the end comes near, and what is taken is gone for
the others: together the processes never admit more than the limit. What a process has not used when a window
ends is good for the longer window still.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil

from deployerp.database.base import utc_now
from deployerp.database.connections import Connections
from deployerp.database.sessions import SessionFactory
from deployerp.domain.plans import HOUR, MINUTE, Limits
from deployerp.domain.rate_windows import (
    WindowUsage,
    lock_windows,
    replace_windows,
    runs_at,
    write_windows,
)

_NAMES = {MINUTE: b"minute", HOUR: b"hour"}
# A process takes at most one part in this many of what is left,
_PARTS = 10
# or of the whole limit, which is more near the end: most requests would otherwise ask the database by then.
_PARTS_OF_ALL = 33
_CAPACITY = 10_000
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class RateLimitStatus:
    """How a subject stands after a request, in the window of which the least is left.

    `reset` is in seconds from now, `reset_at` in Unix time; both are rounded up, so that it is not too early.
    """

    admitted: bool
    limit: int
    remaining: int
    reset: int
    reset_at: int
    window: bytes
    policy: bytes

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As ASGI has them.

        `X-RateLimit-Reset` is the Unix time of the window's end, as is usual; `t` of `RateLimit` is in
        seconds from now, as draft-ietf-httpapi-ratelimit-headers-10 wants it.
        """
        return [
            (b"x-ratelimit-limit", b"%d" % self.limit),
            (b"x-ratelimit-remaining", b"%d" % self.remaining),
            (b"x-ratelimit-reset", b"%d" % self.reset_at),
            (b"ratelimit-policy", self.policy),
            (b"ratelimit", b'"%b";r=%d;t=%d' % (self.window, self.remaining, self.reset)),
        ]


class Limiter:
    """Counts the requests of subjects, such as `organization:<id>` or `address:203.0.113.7`.

    With `connections`, which PostgreSQL has, a share costs one message where no other process took one.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        connections: Connections | None = None,
        *,
        clock: Clock = utc_now,
        capacity: int = _CAPACITY,
    ) -> None:
        self._sessions = sessions
        self._connections = connections
        self._clock = clock
        self._capacity = capacity
        # The least recently used first.
        self._tallies: OrderedDict[str, _Tally] = OrderedDict()

    async def admit(self, subject: str, limits: Limits) -> RateLimitStatus | None:
        """Counts a request, if every window has one left; None where there is no limit.

        A refused request counts nowhere. Raises what the database raises when it has to be asked.
        """
        tally = self._tallies.get(subject)
        if tally is None or tally.limits != limits:
            if not limits.windows:
                return None
            tally = self._tallies[subject] = _Tally(subject, limits)
            if len(self._tallies) > self._capacity:
                self._tallies.popitem(last=False)
        self._tallies.move_to_end(subject)
        return tally.count(self._clock()) or await self._queue(tally)

    def is_spent(self, subject: str) -> bool:
        """Whether the subject's next request would be refused, as far as this process knows by itself."""
        tally = self._tallies.get(subject)
        return tally is not None and tally.is_spent_at(self._clock())

    async def _queue(self, tally: "_Tally") -> RateLimitStatus:
        """Waits for a share, which all who wait have in common."""
        place: asyncio.Future[RateLimitStatus] = asyncio.get_running_loop().create_future()
        tally.waiting.append(place)
        if tally.serving is None:
            # A task of its own: who gives up waiting does not take the share from the others.
            tally.serving = asyncio.create_task(self._serve(tally))
        return await place

    async def _serve(self, tally: "_Tally") -> None:
        try:
            while tally.waiting:
                await self._lease(tally)
                tally.serve(self._clock())
        except Exception as error:
            tally.fail(error)
        finally:
            tally.serving = None

    async def _lease(self, tally: "_Tally") -> None:
        """Takes a share of every window; after it, each has something at hand or one of them is spent."""
        if self._connections is None or not await self._lease_as_known(tally, self._connections):
            await self._lease_after_looking(tally)

    async def _lease_as_known(self, tally: "_Tally", connections: Connections) -> bool:
        """Says whether the windows were still as this process has left them; if not, nothing is taken."""
        known = tally.known()
        if not known:
            return False
        tally.learn(known, self._clock())
        shares = tally.shares()
        if not shares or not await replace_windows(connections, tally.subject, known, tally.after(shares)):
            return False
        tally.take(shares)
        return True

    async def _lease_after_looking(self, tally: "_Tally") -> None:
        async with self._sessions() as session, session.begin():
            found = await lock_windows(session, tally.subject, tally.lengths, self._clock())
            # The time may have passed with waiting for the lock.
            tally.learn(found, self._clock())
            shares = tally.shares()
            if shares:
                await write_windows(session, tally.subject, tally.after(shares))
        tally.take(shares)


class _Window:
    """One window of one subject, as this process knows it.

    `remaining` is what all processes together have left, as far as is known: others may have taken of it.
    `at_hand` is the part that this process has taken and not used, and `taken` all that it took. `kept` is
    what the database has, as far as is known.
    """

    __slots__ = (
        "at_hand",
        "kept",
        "length",
        "limit",
        "name",
        "remaining",
        "reset_at",
        "seconds",
        "spent",
        "started_at",
        "taken",
    )

    def __init__(self, seconds: int, limit: int) -> None:
        self.name = _NAMES[seconds]
        self.seconds = seconds
        self.length = timedelta(seconds=seconds)
        self.limit = limit
        self.kept: WindowUsage | None = None
        self._begin(_NEVER)

    def _begin(self, started_at: datetime) -> None:
        self.started_at = started_at
        self.reset_at = ceil((started_at + self.length).timestamp())
        self.spent = self.taken = self.at_hand = 0
        self.remaining = self.limit

    def learn(self, found: WindowUsage, now: datetime) -> None:
        """Takes over what the database says; one that has ended or not begun would begin now."""
        self.kept = found
        begun = found.spent > 0 and runs_at(now, found.started_at, self.length)
        started_at, spent = found if begun else (now, 0)
        if started_at != self.started_at:
            self._begin(started_at)
        self.spent = spent
        self.remaining = max(0, self.limit - spent) + self.at_hand

    def share(self, waiting: int) -> int:
        """How many to have at hand: not more than this process has already used or is asked for now.

        Otherwise the requests of a client that comes to it once and then goes to another would be lost.
        """
        used = self.taken - self.at_hand
        most = max(self.remaining // _PARTS, self.limit // _PARTS_OF_ALL)
        return min(max(1, min(most, used + waiting)), self.remaining)

    def spending(self, more: int) -> WindowUsage:
        return WindowUsage(self.started_at, self.spent + more)

    def take(self, more: int) -> None:
        self.kept = self.spending(more)
        self.spent += more
        self.taken += more
        self.at_hand += more

    def tightness(self) -> tuple[int, int]:
        """Sorts windows: the least remaining first, and of those the one that ends last."""
        return self.remaining, -self.reset_at


class _Tally:
    """The windows of a subject under its limits, and the requests that wait for a share of them."""

    def __init__(self, subject: str, limits: Limits) -> None:
        self.subject = subject
        self.limits = limits
        self.windows = tuple(_Window(seconds, limit) for seconds, limit in limits.windows)
        self.lengths = tuple(window.seconds for window in self.windows)
        self.policy = b", ".join(b'"%b";q=%d;w=%d' % (w.name, w.limit, w.seconds) for w in self.windows)
        self.waiting: deque[asyncio.Future[RateLimitStatus]] = deque()
        self.serving: asyncio.Task[None] | None = None

    def count(self, now: datetime) -> RateLimitStatus | None:
        """Counts a request from what is at hand, or refuses it; None when the database has to be asked."""
        running = self._running_at(now)
        tightest = min(running, key=_Window.tightness, default=None)
        if tightest is None:
            return None
        if not tightest.remaining:
            return self._standing(False, tightest, now)
        if len(running) < len(self.windows) or not all(window.at_hand for window in running):
            return None
        for window in running:
            window.at_hand -= 1
            window.remaining -= 1
        return self._standing(True, tightest, now)

    def is_spent_at(self, now: datetime) -> bool:
        return any(not window.remaining for window in self._running_at(now))

    def shares(self) -> dict[_Window, int]:
        """How many more each window needs, for all to have the same at hand; empty when one is spent."""
        size = min(window.share(len(self.waiting)) for window in self.windows)
        return {window: size - window.at_hand for window in self.windows if window.at_hand < size}

    def known(self) -> dict[int, WindowUsage]:
        """What the database has, by the windows' seconds; empty before the first look."""
        return {window.seconds: window.kept for window in self.windows if window.kept is not None}

    def learn(self, found: Mapping[int, WindowUsage], now: datetime) -> None:
        for window in self.windows:
            window.learn(found[window.seconds], now)

    def after(self, shares: Mapping[_Window, int]) -> dict[int, WindowUsage]:
        """What the database has once these are taken, by the windows' seconds."""
        return self.known() | {window.seconds: window.spending(more) for window, more in shares.items()}

    def take(self, shares: Mapping[_Window, int]) -> None:
        for window, more in shares.items():
            window.take(more)

    def serve(self, now: datetime) -> None:
        """Answers who waits, in their order, as far as what is at hand goes."""
        while self.waiting:
            # Cancelled: its request was given up.
            if not self.waiting[0].done():
                standing = self.count(now)
                if standing is None:
                    return
                self.waiting[0].set_result(standing)
            self.waiting.popleft()

    def fail(self, error: Exception) -> None:
        for place in self.waiting:
            if not place.done():
                place.set_exception(error)
        self.waiting.clear()

    def _running_at(self, now: datetime) -> list[_Window]:
        return [window for window in self.windows if runs_at(now, window.started_at, window.length)]

    def _standing(self, admitted: bool, window: _Window, now: datetime) -> RateLimitStatus:
        reset = ceil((window.started_at + window.length - now) / _SECOND)
        return RateLimitStatus(
            admitted, window.limit, window.remaining, reset, window.reset_at, window.name, self.policy
        )
