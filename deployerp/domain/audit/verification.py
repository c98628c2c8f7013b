"""Whether an organization's audit log is whole: nothing changed, left out, put in or cut off."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import func, or_, select

from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.log import GENESIS, chained, digest_of
from deployerp.domain.tables import metadata

# Enough to make the queries cheap, and little to hold.
_BATCH = 1000
_LOG, _HEADS = metadata.tables["audit_log"], metadata.tables["audit_heads"]


@dataclass(frozen=True, slots=True)
class Verified:
    """A whole log. Whoever keeps its last hash elsewhere will also notice when all of it is written anew."""

    entries: int
    last_hash: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The first entry that is not as it was written, and how."""

    sequence: int
    reason: str


_Entry = dict[str, Any]


class _Link(NamedTuple):
    sequence: int
    previous_hash: str
    hash: str


_BEGINNING = _Link(0, "", GENESIS)


async def verify(sessions: SessionFactory, organization_id: UUID) -> Verified | Broken:
    """Follows the chain from its beginning to its head, in short transactions that keep no writer waiting."""
    head = await _head(sessions, organization_id)
    last = _BEGINNING
    async for entry in _entries(sessions, organization_id, head.sequence):
        reason = _fault(entry, last)
        if entry is None or reason:
            return Broken(last.sequence + 1, reason)
        last = _Link(entry["sequence"], entry["previous_hash"], entry["hash"])
    if last.sequence < head.sequence:
        return Broken(last.sequence + 1, "it is missing")
    if last != head:
        return Broken(last.sequence, "the head of the log is not what follows from it")
    stray = await _stray(sessions, organization_id)
    if stray is not None:
        return Broken(stray, "it is not between the beginning and the head of the log")
    return Verified(last.sequence, last.hash)


def _fault(entry: _Entry | None, last: _Link) -> str:
    if entry is None:
        return "it cannot be read"
    if entry["sequence"] != last.sequence + 1:
        return "it is missing"
    if entry["previous_hash"] != last.hash:
        return "it does not follow the entry before it"
    if entry["hash"] != chained(entry["previous_hash"], entry["sequence"], digest_of(entry)):
        return "it is not as it was written"
    return ""


async def _head(sessions: SessionFactory, organization_id: UUID) -> _Link:
    query = select(_HEADS.c.sequence, _HEADS.c.previous_hash, _HEADS.c.hash)
    async with sessions() as session:
        found = (
            await session.execute(query.where(_HEADS.c.organization_id == organization_id))
        ).one_or_none()
    return _Link(*found) if found else _BEGINNING


async def _entries(sessions: SessionFactory, organization_id: UUID, end: int) -> AsyncIterator[_Entry | None]:
    """All up to `end` in their order; None, and no more, for one that cannot be read."""
    last, size = 0, _BATCH
    while True:
        try:
            batch = await _batch(sessions, organization_id, last, end, size)
        except (ValueError, TypeError):
            # SQLite keeps in a column what was put there: look for the entry, one by one.
            if size == 1:
                yield None
                return
            size = 1
            continue
        for entry in batch:
            yield entry
        if not batch:
            return
        last = batch[-1]["sequence"]


async def _batch(
    sessions: SessionFactory, organization_id: UUID, after: int, end: int, size: int
) -> list[_Entry]:
    query = (
        select(_LOG)
        .where(_LOG.c.organization_id == organization_id, _LOG.c.sequence > after, _LOG.c.sequence <= end)
        .order_by(_LOG.c.sequence)
        .limit(size)
    )
    async with sessions() as session:
        return [dict(row) for row in (await session.execute(query)).mappings()]


async def _stray(sessions: SessionFactory, organization_id: UUID) -> int | None:
    # One statement: what writers add meanwhile is there with its head, or not at all.
    end = select(_HEADS.c.sequence).where(_HEADS.c.organization_id == organization_id).scalar_subquery()
    query = select(func.min(_LOG.c.sequence)).where(
        _LOG.c.organization_id == organization_id,
        or_(_LOG.c.sequence < 1, _LOG.c.sequence > func.coalesce(end, 0)),
    )
    async with sessions() as session:
        found: int | None = await session.scalar(query)
    return found
