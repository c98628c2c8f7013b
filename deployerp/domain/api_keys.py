"""API keys: `dep_live_<id>_<random>`, shown once, kept as a SHA-256."""

import re
import secrets
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import or_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, col

from deployerp.core.secrets import digest
from deployerp.database.base import Record, one_of, time_field
from deployerp.domain.permissions import LEVELS

_TOKEN = re.compile(r"dep_live_([0-9a-z]{16})_([0-9A-Za-z]{43})")
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_SECRET_ALPHABET = _ALPHABET + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# A write per request would cost more than the knowledge is worth.
_LAST_USED_STEP = timedelta(minutes=1)


class ApiKey(Record, table=True):
    __tablename__ = "api_keys"
    __table_args__ = (one_of("level", LEVELS),)

    organization_id: UUID = Field(foreign_key="organizations.id", index=True)
    name: str
    level: str
    key_id: str = Field(unique=True)
    token_digest: str
    expires_at: datetime | None = time_field()
    last_used_at: datetime | None = time_field()
    revoked_at: datetime | None = time_field()

    def is_valid_at(self, time: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or time < self.expires_at)

    def wants_mark_at(self, time: datetime) -> bool:
        """Whether its last use is so long ago that this one is worth a note."""
        return self.last_used_at is None or time - self.last_used_at >= _LAST_USED_STEP


def new_api_key(
    organization_id: UUID, name: str, level: str, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A key record and its token; the token exists only here."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(16))
    token = f"dep_live_{key_id}_" + "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(43))
    key = ApiKey(
        organization_id=organization_id,
        name=name,
        level=level,
        key_id=key_id,
        token_digest=digest(token),
        expires_at=expires_at,
    )
    return key, token


def key_id_of(token: str) -> str | None:
    """The public part of a token, or None when it is no token of ours."""
    match = _TOKEN.fullmatch(token)
    return match.group(1) if match else None


async def mark_used(session: AsyncSession, id: UUID, time: datetime) -> None:
    """Notes a use, unless another process has just done so."""
    last_used_at = col(ApiKey.last_used_at)
    await session.execute(
        update(ApiKey)
        .where(col(ApiKey.id) == id, or_(last_used_at.is_(None), last_used_at <= time - _LAST_USED_STEP))
        # To be used is no change of the key.
        .values(last_used_at=time, updated_at=col(ApiKey.updated_at))
    )
