"""The tenant: everything else belongs to exactly one organization."""

from typing import cast

from sqlmodel import Field

from deployerp.database.base import Record, one_of
from deployerp.domain.plans import PLAN_LIMITS, PLANS, Limits, Plan


class Organization(Record, table=True):
    __tablename__ = "organizations"
    __table_args__ = (one_of("plan", PLANS),)

    name: str
    slug: str = Field(unique=True)
    plan: str = Field(default="starter", sa_column_kwargs={"server_default": "starter"})
    # An agreement of its own, in place of the plan's.
    requests_per_minute: int | None = None
    requests_per_hour: int | None = None
    # The number of its latest event: raised in the transaction of the event, so that writers queue on
    # the row and the sequence has neither gaps nor repeats.
    event_sequence: int = 0

    @property
    def limits(self) -> Limits:
        plan = PLAN_LIMITS[cast("Plan", self.plan)]
        return Limits(
            per_minute=plan.per_minute if self.requests_per_minute is None else self.requests_per_minute,
            per_hour=plan.per_hour if self.requests_per_hour is None else self.requests_per_hour,
        )
