"""Users who come with a token of another issuer that the operator trusts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.domain.access_tokens import TokenRefused, issuer_of, verified
from deployerp.domain.audit_log import Deed, append
from deployerp.domain.settings import TrustedIssuer
from deployerp.domain.users import EMAIL_PATTERN, Identity, Membership, User, choose, memberships_of
from deployerp.drivers.jwks import KeySet

Claims = Mapping[str, Any]
_REQUIRED = ("iss", "aud", "sub", "iat", "exp")
# OpenID Connect's own limit.
_SUBJECT = re.compile(r"[\x20-\x7e]{1,255}")
_EMAIL = re.compile(EMAIL_PATTERN)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a token came from, for the audit log; one that no request brought has an id of its own."""

    address: str | None = None
    request_id: str = field(default_factory=lambda: uuid4().hex)


class ExternalIdentities:
    """Verifies tokens of trusted issuers, and knows whose they are."""

    def __init__(self, issuers: Mapping[str, tuple[TrustedIssuer, KeySet]]) -> None:
        self._issuers = issuers

    async def verify(self, token: str, kid: str) -> Claims:
        """The claims of the token. Raises `TokenRefused`."""
        name = issuer_of(token)
        if name not in self._issuers:
            raise TokenRefused("its issuer is not trusted")
        trusted, keys = self._issuers[name]
        key = await keys.key(kid)
        if key is None:
            raise TokenRefused("its issuer has no key of this name")
        claims = verified(
            token,
            key,
            trusted.algorithm,
            issuer=trusted.issuer,
            audience=trusted.audience,
            require=_REQUIRED,
        )
        if not _SUBJECT.fullmatch(claims["sub"]):
            raise TokenRefused("its subject is no identifier")
        return claims

    async def membership(self, session: AsyncSession, claims: Claims, origin: Origin) -> Membership:
        """The user of verified claims, in the organization that they name. Raises `TokenRefused`.

        A subject that is seen for the first time is linked to the member with its e-mail address, if the
        issuer says that it has verified that. The audit log tells of it: nothing else may follow in the
        transaction.
        """
        issuer, subject = claims["iss"], claims["sub"]
        trusted, _ = self._issuers[issuer]
        organization = claims.get(trusted.organization_claim)
        if organization is not None and not isinstance(organization, str):
            raise TokenRefused("its organization is no text")
        linked = await _identity(session, issuer, subject)
        user_id = linked.user_id if linked else (await _user_of(session, claims)).id
        # Also of a subject that is known: whom it is trusted to speak for may have changed since.
        memberships = [each for each in await memberships_of(session, user_id) if _speaks_for(trusted, each)]
        membership = choose(memberships, organization)
        if membership is None:
            raise TokenRefused(
                "its user is no member of the organization, or does not name one of several,"
                " or its issuer is not trusted there"
            )
        if linked is None:
            identity = Identity(user_id=user_id, issuer=issuer, subject=subject)
            if await _link(session, identity):
                await append(session, membership.organization.id, _deed(identity, origin))
        return membership


def _speaks_for(trusted: TrustedIssuer, membership: Membership) -> bool:
    return not trusted.organizations or membership.organization.slug in trusted.organizations


async def _user_of(session: AsyncSession, claims: Claims) -> User:
    email = claims.get("email")
    # Some issuers send texts here; "false" would be true.
    if claims.get("email_verified") is not True or not isinstance(email, str) or not _EMAIL.fullmatch(email):
        raise TokenRefused("its subject is not known, and it has no verified e-mail address")
    user = await session.scalar(select(User).where(col(User.email) == email.lower()))
    if user is None:
        raise TokenRefused("nobody has its e-mail address")
    other = await session.scalar(
        select(col(Identity.id)).where(
            col(Identity.user_id) == user.id,
            col(Identity.issuer) == claims["iss"],
            col(Identity.subject) != claims["sub"],
        )
    )
    if other is not None:
        # An address that is given to somebody new must not give them what the one before had.
        raise TokenRefused("its e-mail address belongs to another subject of its issuer")
    return user


async def _link(session: AsyncSession, identity: Identity) -> bool:
    """Says whether it was not linked yet. Raises `TokenRefused` where it is to another user."""
    try:
        async with session.begin_nested():
            session.add(identity)
    except IntegrityError:
        # The subject's first tokens may come to several processes at once: any of them may link it.
        linked = await _identity(session, identity.issuer, identity.subject)
        if linked is None or linked.user_id != identity.user_id:
            raise TokenRefused("its subject was linked to another user at this moment") from None
        return False
    return True


def _deed(identity: Identity, origin: Origin) -> Deed:
    return Deed(
        actor_type="user",
        actor_id=identity.user_id,
        action="link_identity",
        resource_type="user",
        resource_id=identity.user_id,
        address=origin.address,
        request_id=origin.request_id,
        after={"issuer": identity.issuer, "subject": identity.subject},
    )


async def _identity(session: AsyncSession, issuer: str, subject: str) -> Identity | None:
    found: Identity | None = await session.scalar(
        select(Identity).where(col(Identity.issuer) == issuer, col(Identity.subject) == subject)
    )
    return found
