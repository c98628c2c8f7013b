"""Plans: how many requests an organization may make, as data."""

from dataclasses import dataclass
from typing import Literal, get_args

Plan = Literal["starter", "professional", "enterprise"]
PLANS: tuple[Plan, ...] = get_args(Plan)
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class Limits:
    """Requests per window; None is no limit."""

    per_minute: int | None
    per_hour: int | None

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """`(seconds, requests)` of each window that has a limit, the shortest first."""
        rows = ((MINUTE, self.per_minute), (HOUR, self.per_hour))
        return tuple((seconds, requests) for seconds, requests in rows if requests is not None)


PLAN_LIMITS: dict[Plan, Limits] = {
    "starter": Limits(100, 1_000),
    "professional": Limits(500, 5_000),
    "enterprise": Limits(None, None),
}
