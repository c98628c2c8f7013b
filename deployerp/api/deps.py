"""What routes ask for: the caller, a session, the settings, Temporal."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.domain.api_keys import ApiKey, key_id_of
from deployerp.domain.base import utc_now
from deployerp.domain.database import SessionFactory
from deployerp.domain.errors import Forbidden, Unauthorized
from deployerp.domain.permissions import PERMISSIONS, Level
from deployerp.domain.secrets import Vault, digest, same
from deployerp.domain.settings import Settings
from deployerp.drivers.temporal import Temporal

_bearer = HTTPBearer(auto_error=False, description="An API key, `erp_live_...`")
# A write per request would cost more than the knowledge is worth.
_LAST_USED_STEP = timedelta(minutes=1)


@dataclass(frozen=True)
class Context:
    """What the application shares between requests; lives in its state."""

    settings: Settings
    sessions: SessionFactory
    temporal: Temporal
    vault: Vault


@dataclass(frozen=True)
class Caller:
    """Who asks, for which organization."""

    organization_id: UUID
    key_id: UUID
    level: Level


def context(request: Request) -> Context:
    return cast("Context", request.app.state.context)


async def session(shared: Annotated[Context, Depends(context)]) -> AsyncIterator[AsyncSession]:
    """One transaction for the request's reads; writes open their own and commit before they answer."""
    async with shared.sessions() as opened:
        yield opened


ContextDep = Annotated[Context, Depends(context)]
SessionDep = Annotated[AsyncSession, Depends(session)]


async def authenticate(
    shared: ContextDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    """The caller that the bearer token proves. Raises `Unauthorized`, with the same words for every cause."""
    refused = Unauthorized("A valid API key is needed: send `Authorization: Bearer erp_live_...`.")
    key_id = key_id_of(credentials.credentials) if credentials else None
    if credentials is None or key_id is None:
        raise refused
    async with shared.sessions() as opened, opened.begin():
        key = await opened.scalar(select(ApiKey).where(col(ApiKey.key_id) == key_id))
        now = utc_now()
        if (
            key is None
            or not same(key.token_digest, digest(credentials.credentials))
            or not key.is_valid_at(now)
        ):
            raise refused
        if key.last_used_at is None or now - key.last_used_at > _LAST_USED_STEP:
            key.last_used_at = now
    return Caller(key.organization_id, key.id, cast("Level", key.level))


def require(permission: str) -> Any:
    """The caller, if the key's level includes the permission. Raises `Forbidden`."""

    async def authorise(caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if permission not in PERMISSIONS[caller.level]:
            raise Forbidden(
                f"The key's level is `{caller.level}`, which does not include `{permission}`:"
                " use a key of a higher level."
            )
        return caller

    # A test walks the routes by it.
    authorise.__dict__["permission"] = permission
    return Depends(authorise)
