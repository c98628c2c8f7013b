"""How much of a limit is spent, shared by all API processes."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import and_, bindparam, delete, or_, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel, col

from deployerp.database.base import UtcDateTime
from deployerp.database.connections import Connections
from deployerp.database.statements import Statement
from deployerp.domain.plans import HOUR, MINUTE


class RateWindow(SQLModel, table=True):
    """One window of one subject: an organization, an address, an account that somebody signs in to."""

    __tablename__ = "rate_windows"

    subject: str = Field(primary_key=True)
    seconds: int = Field(primary_key=True)
    # A window begins with its first request.
    started_at: datetime = Field(sa_type=UtcDateTime, index=True)
    spent: int


class WindowUsage(NamedTuple):
    """When a window began and what has been taken of it; it has not begun where nothing is spent."""

    started_at: datetime
    spent: int


def runs_at(now: datetime, started_at: datetime, length: timedelta) -> bool:
    """Whether a window that began then has not ended.

    One from the future was begun by a process whose clock is ahead: it is believed by less than a length.
    """
    return abs(now - started_at) < length


async def lock_windows(
    session: AsyncSession, subject: str, lengths: Sequence[int], now: datetime
) -> dict[int, WindowUsage]:
    """The subject's windows by their seconds, which are this transaction's alone until it ends.

    What is missing is made. `lengths` are in seconds, the shortest first: who locks in another order would
    make deadlocks.
    """
    connection = await session.connection()
    rows = [{"subject": subject, "seconds": length, "started_at": now, "spent": 0} for length in lengths]
    found = await connection.execute(_LOCKED[connection.dialect.name], rows)
    return {seconds: WindowUsage(started_at, spent) for seconds, started_at, spent in found}


async def write_windows(session: AsyncSession, subject: str, spendings: Mapping[int, WindowUsage]) -> None:
    """Writes windows, by their seconds, that `lock_windows` has locked in this transaction."""
    connection = await session.connection()
    rows = [
        {"of": subject, "for_seconds": seconds, "started_at": spending.started_at, "spent": spending.spent}
        for seconds, spending in spendings.items()
    ]
    await connection.execute(_WRITTEN, rows)


def open_connections(url: str) -> Connections:
    """For `replace_windows`, on PostgreSQL."""
    return Connections(url, _CONNECTIONS, _SETTINGS)


async def replace_windows(
    connections: Connections,
    subject: str,
    known: Mapping[int, WindowUsage],
    wanted: Mapping[int, WindowUsage],
) -> bool:
    """Writes windows, by their seconds, unless one of them is no longer as it was known; says whether.

    One message, in place of a transaction that locks, reads and writes.
    """
    values: dict[str, object] = {"subject": subject, "seconds": [*known]}
    for name, spendings in (("known", known), ("wanted", wanted)):
        values[f"{name}_started"] = [spendings[seconds].started_at for seconds in known]
        values[f"{name}_spent"] = [spendings[seconds].spent for seconds in known]
    return bool(await connections.run(_REPLACED, values))


async def forget_ended(session: AsyncSession, now: datetime) -> int:
    """Deletes windows that have ended, so many at a time that nobody waits for it; says how many.

    A window is left a minute longer: to an API process whose clock is behind it still runs.
    """
    ended = or_(
        *(
            and_(
                col(RateWindow.seconds) == seconds,
                col(RateWindow.started_at) < now - timedelta(seconds=seconds) - _GRACE,
            )
            for seconds in (MINUTE, HOUR)
        )
    )
    # What is locked is in use. Who waits for it while it holds others would make a deadlock.
    free = select(*_KEY).where(ended).limit(_BATCH).with_for_update(skip_locked=True)
    connection = await session.connection()
    gone = await connection.execute(delete(RateWindow).where(tuple_(*_KEY).in_(free)))
    return gone.rowcount


_GRACE = timedelta(minutes=1)
_BATCH = 10_000
_KEY = (col(RateWindow.subject), col(RateWindow.seconds))
# One statement that makes a row or locks the one that is there: nobody can come in between.
_LOCKED = {
    name: dialect.insert(RateWindow)
    .on_conflict_do_update(index_elements=_KEY, set_={"spent": col(RateWindow.spent)})
    .returning(col(RateWindow.seconds), col(RateWindow.started_at), col(RateWindow.spent))
    for name, dialect in {"postgresql": postgresql, "sqlite": sqlite}.items()
}
_WRITTEN = (
    update(RateWindow)
    .where(col(RateWindow.subject) == bindparam("of"), col(RateWindow.seconds) == bindparam("for_seconds"))
    .values(started_at=bindparam("started_at"), spent=bindparam("spent"))
)

# Few are busy at a time: who waits for a share of one subject waits for one statement.
_CONNECTIONS = 2
# Nobody waits for the disk: a server that breaks down forgets what was spent in its last second.
_SETTINGS = {"synchronous_commit": "off", "plan_cache_mode": "force_generic_plan"}
# Locked before they are compared: nothing that others write comes in between, and a window that was once as
# it is known never becomes so again, since it is only spent or begins anew.
_REPLACED = Statement(
    text(
        """
    WITH held AS (
        SELECT seconds, started_at, spent FROM rate_windows
        WHERE subject = :subject AND seconds = ANY(CAST(:seconds AS int[])) ORDER BY seconds FOR UPDATE
    ), known AS (
        SELECT * FROM unnest(
            CAST(:seconds AS int[]), CAST(:known_started AS timestamptz[]), CAST(:known_spent AS int[])
        ) AS known (seconds, started_at, spent)
    ), wanted AS (
        SELECT * FROM unnest(
            CAST(:seconds AS int[]), CAST(:wanted_started AS timestamptz[]), CAST(:wanted_spent AS int[])
        ) AS wanted (seconds, started_at, spent)
    )
    UPDATE rate_windows AS kept SET started_at = wanted.started_at, spent = wanted.spent FROM wanted
    WHERE kept.subject = :subject AND kept.seconds = wanted.seconds
        AND NOT EXISTS (SELECT * FROM known EXCEPT SELECT * FROM held)
    RETURNING kept.seconds
    """
    )
)
