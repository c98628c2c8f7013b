"""Who is behind a bearer token: an API key, a user with a token of ours, or one of a trusted issuer's."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from datetime import datetime
from typing import cast
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import col
from starlette.types import Scope

from deployerp.api.access.callers import Caller
from deployerp.api.access.external_identities import ExternalIdentities, Origin
from deployerp.core.background import Background
from deployerp.core.errors import Unauthorized
from deployerp.core.secrets import digest, same
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.database.tenancy import Tenant
from deployerp.domain.access_tokens import AccessTokens, Claims, TokenRefused, key_name_of
from deployerp.domain.api_keys import ApiKey, key_id_of, mark_used
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import LEVEL_PERMISSIONS, ROLE_PERMISSIONS, Level
from deployerp.domain.users import Membership, memberships_of
from deployerp.drivers.web.jwks import KeySet

REMEMBERED_SECONDS = 5
_MOST_REMEMBERED = 10_000
# The caller, and when what proves them ends, in seconds since 1970.
_Found = tuple[Caller, float | None]
log = structlog.get_logger()


class Authenticator:
    """Finds the caller of a token, and remembers them for seconds.

    So a revoked key, an ended membership and a changed role count within seconds in every process, and
    at once in the one that was told to `forget`.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: SessionFactory,
        background: Background,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._background = background
        self._clock = clock
        self.tokens = AccessTokens(
            settings.encryption_keys,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
            minutes=settings.access_token_minutes,
        )
        issuers = settings.trusted_issuers
        self._external = ExternalIdentities(
            {each.issuer: (each, KeySet(each.jwks_url, each.algorithm, clock=clock)) for each in issuers}
        )
        # By the SHA-256 of the token, and in the order in which they are forgotten, or nearly.
        self._remembered: dict[bytes, tuple[float, Caller]] = {}
        self._asked: dict[bytes, asyncio.Task[Caller]] = {}

    def remembered(self, token: str) -> Caller | None:
        """The caller, if this process has found them a moment ago."""
        found = self._remembered.get(_digest(token))
        return found[1] if found is not None and found[0] > self._clock() else None

    async def caller(self, token: str, origin: Origin | None = None) -> Caller:
        """The caller that the token proves. Raises `Unauthorized`, with the same words for every cause.

        The audit log tells `origin` where a subject of another issuer is linked to its user.
        """
        known = self.remembered(token)
        if known is not None:
            return known
        key = _digest(token)
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.create_task(
                self._ask(token, key, self._asked, origin or Origin())
            )
            asked.add_done_callback(_looked_at)
        # One who goes away must not take the answer from the others.
        return await asyncio.shield(asked)

    def forget(self, actor_id: UUID) -> None:
        """A user or a key has changed: the next request looks again."""
        gone = [key for key, (_, caller) in self._remembered.items() if caller.actor_id == actor_id]
        for key in gone:
            del self._remembered[key]
        # What is being looked up may have been read before the change.
        self._asked = {}

    async def _ask(
        self, token: str, key: bytes, asked: dict[bytes, asyncio.Task[Caller]], origin: Origin
    ) -> Caller:
        try:
            caller, ends = await self._found(token, origin)
            if asked is self._asked:
                self._remember(key, caller, ends)
            return caller
        except TokenRefused as refused:
            log.info("token refused", reason=str(refused))
            raise Unauthorized(
                "A valid API key or access token is needed: send `Authorization: Bearer dep_live_...`."
            ) from None
        finally:
            asked.pop(key, None)

    def _remember(self, key: bytes, caller: Caller, ends: float | None) -> None:
        now = self._clock()
        while self._remembered:
            oldest = next(iter(self._remembered))
            if self._remembered[oldest][0] > now and len(self._remembered) < _MOST_REMEMBERED:
                break
            del self._remembered[oldest]
        seconds = REMEMBERED_SECONDS if ends is None else min(REMEMBERED_SECONDS, ends - time.time())
        self._remembered.pop(key, None)
        self._remembered[key] = (now + seconds, caller)

    async def _found(self, token: str, origin: Origin) -> _Found:
        key_id = key_id_of(token)
        if key_id is not None:
            return await self._by_key(key_id, token)
        kid = key_name_of(token)
        if not self.tokens.are_named(kid):
            return await self._by_external(token, kid, origin)
        claims = self.tokens.verify(token, kid)
        async with self._sessions() as session:
            memberships = await memberships_of(session, claims.user_id)
        for membership in memberships:
            if membership.organization.id == claims.organization_id:
                _check_password_unchanged(membership, claims)
                return _member(membership), claims.expires_at
        raise TokenRefused("its user is disabled, or no member of its organization any more")

    async def _by_external(self, token: str, kid: str, origin: Origin) -> _Found:
        claims = await self._external.verify(token, kid)
        async with self._sessions() as session, session.begin():
            membership = await self._external.membership(session, claims, origin)
        return _member(membership), float(claims["exp"])

    async def _by_key(self, key_id: str, token: str) -> _Found:
        async with self._sessions() as session:
            found = (
                await session.execute(
                    select(ApiKey, Organization)
                    .join(Organization, col(Organization.id) == col(ApiKey.organization_id))
                    .where(col(ApiKey.key_id) == key_id)
                )
            ).first()
        if found is None:
            raise TokenRefused("there is no such key")
        key, organization = found[0], found[1]
        now = utc_now()
        if not same(key.token_digest, digest(token)):
            raise TokenRefused("it is not the key of this id")
        if not key.is_valid_at(now):
            raise TokenRefused("the key has expired or is revoked")
        if key.wants_mark_at(now):
            self._background.run(self._mark_used(key.id, now))
        level = cast("Level", key.level)
        caller = Caller(
            Tenant(organization.id),
            "api_key",
            key.id,
            f"level `{level}`",
            LEVEL_PERMISSIONS[level],
            organization.limits,
        )
        return caller, key.expires_at.timestamp() if key.expires_at else None

    async def _mark_used(self, id: UUID, now: datetime) -> None:
        async with self._sessions() as session, session.begin():
            await mark_used(session, id, now)


def _check_password_unchanged(membership: Membership, claims: Claims) -> None:
    """Raises `TokenRefused`. Tokens have whole seconds: one of the second of the change is taken."""
    changed_at = membership.user.password_changed_at
    if changed_at is not None and claims.issued_at < int(changed_at.timestamp()):
        raise TokenRefused("its user has changed the password since")


def _member(found: Membership) -> Caller:
    return Caller(
        Tenant(found.organization.id),
        "user",
        found.user.id,
        f"role `{found.role}`",
        ROLE_PERMISSIONS[found.role],
        found.organization.limits,
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _looked_at(asked: asyncio.Task[Caller]) -> None:
    # Where everybody who asked has gone away, nobody is left to take the error.
    if not asked.cancelled():
        asked.exception()


def bearer_of(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None
