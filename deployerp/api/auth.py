"""Access tokens of people: an e-mail address and a password for a short one, and another to renew it with."""

from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.api.contract.dependencies import Context, ContextDep
from deployerp.api.contract.errors import limited
from deployerp.api.contract.routes import Route, public
from deployerp.api.contract.schemas import Body, Envelope
from deployerp.api.sign_ins import (
    TokenRead,
    audit_record_of,
    count,
    count_failure,
    issue_tokens,
    respond_tokens,
    token_turn,
    tries_at,
    turn,
)
from deployerp.core.errors import Unauthorized, ValidationFailed
from deployerp.core.passwords import fits, hashed, is_outdated
from deployerp.database.base import utc_now
from deployerp.domain import refresh_tokens
from deployerp.domain.audit.log import append
from deployerp.domain.email_addresses import user_who_signs_in
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.users import Email, Membership, User, choose, lock_membership, memberships_of

router = APIRouter(prefix="/v1/auth", tags=["authentication"], route_class=Route)
log = structlog.get_logger()

RefreshSecret = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class SignIn(Body):
    email: Email = Field(description="E-mail address.", examples=["ada@example.com"])
    password: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="Password, at most 1,024 characters.", examples=["correct horse battery"]
    )
    organization: Annotated[str, StringConstraints(min_length=1, max_length=63)] | None = Field(
        None,
        description="ID or slug of the organization. Required for members of several organizations and for"
        " users whose e-mail address is not verified.",
        examples=["acme"],
    )


class Renewal(Body):
    refresh_token: RefreshSecret = Field(
        description="Refresh token from a sign-in or from the last renewal.", examples=["dep_refresh_..."]
    )


@router.post(
    "/token",
    responses=limited(Unauthorized, ValidationFailed),
    response_model=Envelope[TokenRead],
    summary="Create an access token",
)
@public
async def create_token(body: SignIn, request: Request, shared: ContextDep) -> Response:
    """Signs a user in to an organization.

    Users whose e-mail address is not verified must send `organization`.
    """
    tries = tries_at(request, shared, body.email, body.organization)
    async with turn(shared, tries):
        try:
            token = await _signed_in(request, shared, body)
        except Unauthorized:
            await count_failure(shared, tries)
            raise
    shared.guesses.remember(tries.credential)
    return respond_tokens(request, token)


@router.post(
    "/refresh",
    responses=limited(Unauthorized, ValidationFailed),
    response_model=Envelope[TokenRead],
    summary="Refresh an access token",
)
@public
async def refresh_token(body: Renewal, request: Request, shared: ContextDep) -> Response:
    """Exchanges a refresh token for a new pair of tokens.

    A second use of a refresh token revokes all refresh tokens of its sign-in. Access tokens are valid until
    they expire, `expiresIn` seconds after they were issued.
    """
    async with token_turn(request, shared, "renew") as failures:
        async with shared.sessions() as session, session.begin():
            token = await _exchanged(session, request, shared, body.refresh_token)
        # Only now: what a stolen token has ended must be written.
        if token is None:
            await count(shared, failures)
            raise Unauthorized("The refresh token is not good any more: sign in again.")
    return respond_tokens(request, token)


@router.post(
    "/revoke", status_code=204, responses=limited(ValidationFailed), summary="Revoke a refresh token"
)
@public
async def revoke_token(body: Renewal, request: Request, shared: ContextDep) -> Response:
    """Signs a user out: revokes all refresh tokens of the sign-in.

    An unknown token is treated as revoked. Access tokens are valid until they expire, `expiresIn` seconds
    after they were issued.
    """
    async with token_turn(request, shared, "renew") as failures:
        async with shared.sessions() as session, session.begin():
            found = await refresh_tokens.find(session, body.refresh_token)
            if found is not None:
                # It holds back an exchange, of which the new token would get away.
                await lock_membership(session, found.user_id, found.organization_id)
                await _end(session, request, found, "revoke_token")
        if found is None:
            await count(shared, failures)
    return Response(status_code=204)


async def _signed_in(request: Request, shared: Context, body: SignIn) -> TokenRead:
    """Raises `Unauthorized`, and `ValidationFailed` where it is not clear to which organization."""
    user, kept = await _user_of(shared, body)
    async with shared.sessions() as session, session.begin():
        membership = await _choose_membership(session, user, body.organization)
        # Whoever has changed the password meanwhile has ended all sign-ins with the one before.
        present = select(col(User.password_hash)).where(col(User.id) == user.id)
        if await session.scalar(present) != kept:
            raise _wrong()
        token = issue_tokens(session, shared, membership)
        await append(session, membership.organization.id, audit_record_of(request, user.id, "create_token"))
    return token


async def _user_of(shared: Context, body: SignIn) -> tuple[User, str]:
    """The user with this password, and its hash. Raises `Unauthorized`, each time after the same work."""
    async with shared.sessions() as session:
        user = await user_who_signs_in(session, body.email, body.organization)
    kept = user.password_hash if user is not None else None
    # No connection is held meanwhile: it takes longer than all the rest.
    if not await fits(body.password, kept) or user is None or kept is None:
        raise _wrong()
    if not is_outdated(kept):
        return user, kept
    renewed = await hashed(body.password)
    async with shared.sessions() as session, session.begin():
        changed = await session.execute(
            update(User)
            .where(col(User.id) == user.id, col(User.password_hash) == kept)
            .values(password_hash=renewed)
            .returning(col(User.id))
        )
        if changed.all():
            return user, renewed
        # Another sign-in may have done so at the same moment, or the password is not this one any more.
        present = await session.scalar(select(col(User.password_hash)).where(col(User.id) == user.id))
    if present is None or not await fits(body.password, present):
        raise _wrong()
    return user, present


async def _choose_membership(session: AsyncSession, user: User, organization: str | None) -> Membership:
    """The membership to sign in with, locked. Raises `Unauthorized`, and `ValidationFailed` if not one."""
    memberships = await memberships_of(session, user.id)
    if not memberships:
        raise _wrong()
    chosen = choose(memberships, organization)
    if chosen is None:
        raise _ambiguous(memberships)
    held = await lock_membership(session, user.id, chosen.organization.id)
    if held is None:
        raise _wrong()
    return held


async def _exchanged(
    session: AsyncSession, request: Request, shared: Context, secret: str
) -> TokenRead | None:
    known = await refresh_tokens.find(session, secret)
    if known is None:
        return None
    # Exchanges of one member come one after the other from here.
    membership = await lock_membership(session, known.user_id, known.organization_id)
    token = await refresh_tokens.find(session, secret)
    if membership is None or token is None:
        return None
    if token.used_at is not None or token.revoked_at is not None:
        # Somebody else has it too, and nobody knows which of the two is the thief.
        log.warning(
            "refresh token used again",
            user_id=str(token.user_id),
            organization_id=str(token.organization_id),
        )
        await _end(session, request, token, "end_sign_in")
        return None
    now = utc_now()
    if token.expires_at <= now:
        return None
    token.used_at = now
    return issue_tokens(session, shared, membership, token.family_id)


async def _end(session: AsyncSession, request: Request, token: RefreshToken, action: str) -> None:
    """Ends the token's family; nothing else may follow in the transaction."""
    # Once: whoever holds an old token must not fill the log with it.
    if await refresh_tokens.end_family(session, token.family_id):
        await append(session, token.organization_id, audit_record_of(request, token.user_id, action))


def _wrong() -> Unauthorized:
    # The same for everybody: it must not tell whether there is such a user, or another of the address.
    return Unauthorized(
        "The e-mail address or the password is wrong. A user whose address is not verified must name their"
        " `organization`."
    )


def _ambiguous(memberships: list[Membership]) -> ValidationFailed:
    slugs = [each.organization.slug for each in memberships]
    rule = f"must be one of yours: {', '.join(slugs)}"
    details: dict[str, Any] = {
        "fields": [{"field": "organization", "message": rule}],
        "organizations": [
            {"id": str(each.organization.id), "slug": each.organization.slug} for each in memberships
        ],
    }
    return ValidationFailed(f"organization: {rule}", details=details)
