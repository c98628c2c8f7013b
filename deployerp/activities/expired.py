"""What is kept for a time and then forgotten."""

from sqlalchemy import delete, select
from sqlmodel import col

from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.idempotency import IdempotencyRecord
from deployerp.domain.rate_windows import forget_ended
from deployerp.domain.refresh_tokens import RefreshToken

# So many at a time that nobody waits for it; the next sweep goes on.
_AT_ONCE = 5_000


async def forget_expired(sessions: SessionFactory) -> int:
    """Deletes kept answers, refresh tokens and rate windows whose time is over; says how many."""
    now, gone = utc_now(), 0
    for model in (IdempotencyRecord, RefreshToken):
        async with sessions() as session, session.begin():
            over = select(col(model.id)).where(col(model.expires_at) < now).limit(_AT_ONCE)
            connection = await session.connection()
            gone += (await connection.execute(delete(model).where(col(model.id).in_(over)))).rowcount
    async with sessions() as session, session.begin():
        gone += await forget_ended(session, now)
    return gone
