"""Set-password tokens: each lets the user that it was made for choose a password, once."""

import secrets
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, col

from deployerp.core.secrets import digest
from deployerp.database.base import Record, UtcDateTime, utc_now

LIFETIME = timedelta(days=7)
_PREFIX = "dep_password_"


class SetPasswordToken(Record, table=True):
    """A token that can still be used; its use deletes it."""

    __tablename__ = "set_password_tokens"

    # Unique: a new token ends the one before.
    user_id: UUID = Field(foreign_key="users.id", unique=True)
    # Where it was made, and whose audit log tells of its use.
    organization_id: UUID = Field(foreign_key="organizations.id")
    token_digest: str = Field(unique=True)
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)


async def issue(session: AsyncSession, user_id: UUID, organization_id: UUID) -> str:
    """Makes a token and ends the user's earlier one; the token exists only here.

    The caller holds a lock on the user or on a membership of theirs.
    """
    await end(session, user_id)
    secret = _PREFIX + secrets.token_urlsafe(32)
    session.add(
        SetPasswordToken(
            user_id=user_id,
            organization_id=organization_id,
            token_digest=digest(secret),
            expires_at=utc_now() + LIFETIME,
        )
    )
    await session.flush()
    return secret


async def find(session: AsyncSession, secret: str) -> SetPasswordToken | None:
    """The token, unless it was used or has expired."""
    found: SetPasswordToken | None = await session.scalar(
        select(SetPasswordToken).where(
            col(SetPasswordToken.token_digest) == digest(secret), col(SetPasswordToken.expires_at) > utc_now()
        )
    )
    return found


async def use(session: AsyncSession, secret: str) -> bool:
    """Uses a token up; of several uses at once only one is told that it was good."""
    used = await session.execute(
        delete(SetPasswordToken)
        .where(
            col(SetPasswordToken.token_digest) == digest(secret), col(SetPasswordToken.expires_at) > utc_now()
        )
        .returning(col(SetPasswordToken.id))
    )
    return bool(used.all())


async def end(session: AsyncSession, user_id: UUID, organization_id: UUID | None = None) -> None:
    """Ends the token of a user; of an organization, only if it was made there."""
    ended = delete(SetPasswordToken).where(col(SetPasswordToken.user_id) == user_id)
    if organization_id is not None:
        ended = ended.where(col(SetPasswordToken.organization_id) == organization_id)
    await session.execute(ended)
