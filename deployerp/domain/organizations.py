"""The tenant: everything else belongs to exactly one organization."""

from sqlmodel import Field

from deployerp.domain.base import Record


class Organization(Record, table=True):
    __tablename__ = "organizations"

    name: str
    slug: str = Field(unique=True)
    # The number of its latest event: raised in the transaction of the event, so that writers queue on
    # the row and the sequence has neither gaps nor repeats.
    event_sequence: int = 0
