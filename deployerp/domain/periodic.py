"""Periodic work, and the shards by which workers share it.

It imports nothing of ours, so that workflows can use it inside Temporal's sandbox.
"""

from collections.abc import Iterator
from dataclasses import dataclass

# How many shards each kind of work has.
SHARDS = {"sweep": 1, "reap": 1}


@dataclass(frozen=True)
class Shard:
    """One part of a kind of periodic work: number `index`, from 0, of `count`."""

    work: str
    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.work}-{self.index}"


def shards() -> Iterator[Shard]:
    """Every shard of every kind of work."""
    for work, count in SHARDS.items():
        for index in range(count):
            yield Shard(work, index, count)
