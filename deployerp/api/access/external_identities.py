"""Users who come with a token of another issuer that the operator trusts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.core.settings import TrustedIssuer
from deployerp.domain.access_tokens import TokenRefused, issuer_of, verified
from deployerp.domain.audit.log import AuditRecord, append
from deployerp.domain.email_addresses import verify_address
from deployerp.domain.users import (
    EMAIL_PATTERN,
    Identity,
    Membership,
    choose,
    memberships_of,
    memberships_of_address,
)
from deployerp.drivers.web.jwks import KeySet

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
            one_audience=False,
        )
        if not _SUBJECT.fullmatch(claims["sub"]):
            raise TokenRefused("its subject is no identifier")
        return claims

    async def membership(self, session: AsyncSession, claims: Claims, origin: Origin) -> Membership:
        """The user of verified claims, in the organization that they name. Raises `TokenRefused`.

        A subject that is seen for the first time is linked to the member with its e-mail address, if the
        issuer says that it has verified that. Where it is trusted for all organizations the address counts
        as verified from then on; an issuer of some organizations must not decide whose it is in others. The
        audit log tells of both: nothing else may follow in the transaction.
        """
        issuer, subject = claims["iss"], claims["sub"]
        trusted, _ = self._issuers[issuer]
        organization = claims.get(trusted.organization_claim)
        if organization is not None and not isinstance(organization, str):
            raise TokenRefused("its organization is no text")
        linked = await _identity(session, issuer, subject)
        email = _verified_address(claims)
        membership = await _choose(session, trusted, linked, email, organization)
        verifies = (
            not trusted.organizations
            and membership.user.email_verified_at is None
            and membership.user.email == email
        )
        if verifies:
            membership = await _verified(session, membership)
        if linked is not None and linked.user_id != membership.user.id:
            raise TokenRefused("its subject is linked to another user than the one of its e-mail address")
        if linked is None:
            await _check_only_subject(session, membership.user.id, claims)
            identity = Identity(user_id=membership.user.id, issuer=issuer, subject=subject)
            if await _link(session, identity):
                await append(session, membership.organization.id, _deed("link_identity", identity, origin))
        elif verifies:
            await append(session, membership.organization.id, _deed("verify_address", linked, origin))
        return membership


async def _choose(
    session: AsyncSession,
    trusted: TrustedIssuer,
    linked: Identity | None,
    email: str | None,
    organization: str | None,
) -> Membership:
    """The membership that a token is for. Raises `TokenRefused`."""
    if linked is None and email is None:
        raise TokenRefused("its subject is not known, and it has no verified e-mail address")
    memberships: list[Membership] = []
    if linked is not None:
        memberships = await memberships_of(session, linked.user_id)
    # Also of a subject that is known: whom it is trusted to speak for may have changed since.
    chosen = choose([each for each in memberships if _speaks_for(trusted, each)], organization)
    if chosen is None and email is not None and (linked is None or organization is not None):
        # A user that an organization has made of an address that is verified is meant for its owner.
        found = await memberships_of_address(session, email)
        found = [each for each in found if _speaks_for(trusted, each)]
        verified = [each for each in found if each.user.email_verified_at is not None]
        # The owner does not have to name one because other organizations use the address too.
        chosen = choose(verified if verified and organization is None else found, organization)
    if chosen is None:
        raise TokenRefused(
            "its user is no member of the organization, or does not name one of several,"
            " or its issuer is not trusted there"
        )
    return chosen


def _speaks_for(trusted: TrustedIssuer, membership: Membership) -> bool:
    return not trusted.organizations or membership.organization.slug in trusted.organizations


def _verified_address(claims: Claims) -> str | None:
    email = claims.get("email")
    # Some issuers send texts here; "false" would be true.
    if claims.get("email_verified") is not True or not isinstance(email, str) or not _EMAIL.fullmatch(email):
        return None
    return email.lower()


async def _verified(session: AsyncSession, membership: Membership) -> Membership:
    try:
        async with session.begin_nested():
            verified = await verify_address(session, membership)
    except IntegrityError:
        raise TokenRefused("its e-mail address was verified for another user at this moment") from None
    if verified is None:
        raise TokenRefused("its user is no member of the organization any more, or disabled")
    return verified


async def _check_only_subject(session: AsyncSession, user_id: UUID, claims: Claims) -> None:
    other = await session.scalar(
        select(col(Identity.id)).where(
            col(Identity.user_id) == user_id,
            col(Identity.issuer) == claims["iss"],
            col(Identity.subject) != claims["sub"],
        )
    )
    if other is not None:
        # An address that is given to somebody new must not give them what the one before had.
        raise TokenRefused("its e-mail address belongs to another subject of its issuer")


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


def _deed(action: str, identity: Identity, origin: Origin) -> AuditRecord:
    return AuditRecord(
        actor_type="user",
        actor_id=identity.user_id,
        action=action,
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
