"""Failed credentials: who guesses is slowed down, and who shows good credentials still passes."""

from asyncio import Lock, sleep
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from deployerp.api.access.rate_limits import Limiter, RateLimitStatus
from deployerp.core.errors import RateLimitExceeded
from deployerp.domain.plans import Limits

_MOST_GOOD = 10_000
_RETRY_AFTER = 5


class Guesses:
    """Counts the failures of subjects, such as `sign-in:203.0.113.7`, and makes those who wait take turns.

    A limit that refused whoever comes from an address, or names an account, would let anybody lock others
    out. So a subject whose failures are spent is served one request at a time, each after a pause.
    Credentials that this process has found good before need not wait for what others failed with.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._lanes: dict[str, _Lane] = {}
        # The least recently used first.
        self._good: OrderedDict[str, None] = OrderedDict()

    async def count(self, failures: Mapping[str, Limits]) -> RateLimitStatus | None:
        """Counts a failure of each subject; the standing of the first that has none left, if there is one."""
        standings = [await self._limiter.admit(subject, limits) for subject, limits in failures.items()]
        return next((each for each in standings if each is not None and not each.admitted), None)

    def remember(self, credential: str) -> None:
        """Notes that this was good. What is given must not be secret: a digest, or names."""
        self._good[credential] = None
        self._good.move_to_end(credential)
        if len(self._good) > _MOST_GOOD:
            self._good.popitem(last=False)

    def forget(self, credential: str) -> None:
        self._good.pop(credential, None)

    def is_good(self, credential: str) -> bool:
        return credential in self._good

    @asynccontextmanager
    async def turn(
        self, subject: str, *, pause: float, longest: int, alone: bool = False
    ) -> AsyncIterator[None]:
        """Lets a request of the subject in; one at a time and after a pause once its failures are spent.

        `alone` is one at a time in any case: failures that come at once are then all counted. At most
        `longest` requests are inside or wait. Raises `RateLimitExceeded`.
        """
        lane = self._lanes.setdefault(subject, _Lane())
        if lane.requests >= longest:
            raise RateLimitExceeded(
                f"Too many tries with wrong credentials: try again in {_RETRY_AFTER} seconds.",
                retry_after=_RETRY_AFTER,
            )
        lane.requests += 1
        try:
            if not alone and not self._limiter.is_spent(subject):
                yield
                return
            async with lane.lock:
                if self._limiter.is_spent(subject):
                    await sleep(pause)
                yield
        finally:
            lane.requests -= 1
            if not lane.requests:
                del self._lanes[subject]


class _Lane:
    def __init__(self) -> None:
        self.requests = 0
        self.lock = Lock()
