"""Refresh tokens: each is good for one exchange, and one that is used twice ends its whole family."""

import secrets
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, col

from deployerp.core.secrets import digest
from deployerp.database.base import Record, UtcDateTime, new_id, time_field, utc_now

_PREFIX = "dep_refresh_"


class RefreshToken(Record, table=True):
    __tablename__ = "refresh_tokens"

    # All tokens that came from one sign-in, one after the other.
    family_id: UUID = Field(index=True)
    user_id: UUID = Field(foreign_key="users.id", index=True)
    organization_id: UUID = Field(foreign_key="organizations.id")
    token_digest: str = Field(unique=True)
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
    used_at: datetime | None = time_field()
    revoked_at: datetime | None = time_field()


def issue(
    session: AsyncSession,
    user_id: UUID,
    organization_id: UUID,
    lifetime: timedelta,
    family_id: UUID | None = None,
) -> str:
    """Adds a token to a family, or begins one with it; the token exists only here."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    session.add(
        RefreshToken(
            family_id=family_id or new_id(),
            user_id=user_id,
            organization_id=organization_id,
            token_digest=digest(secret),
            expires_at=utc_now() + lifetime,
        )
    )
    return secret


async def find(session: AsyncSession, secret: str) -> RefreshToken | None:
    """The token as it is now, also when the session has read it before."""
    found: RefreshToken | None = await session.scalar(
        select(RefreshToken)
        .where(col(RefreshToken.token_digest) == digest(secret))
        .execution_options(populate_existing=True)
    )
    return found


async def end_family(session: AsyncSession, family_id: UUID) -> bool:
    """Revokes all tokens of a family; says whether it had not ended before."""
    revoked = await session.execute(
        update(RefreshToken)
        .where(col(RefreshToken.family_id) == family_id, col(RefreshToken.revoked_at).is_(None))
        .values(revoked_at=utc_now())
        .returning(col(RefreshToken.id))
    )
    return bool(revoked.all())
