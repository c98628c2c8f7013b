"""Access tokens of people: an e-mail address and a password for a short one, and another to renew it with."""

from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.api.answers import answer
from deployerp.api.deps import Context, ContextDep
from deployerp.api.errors import limited
from deployerp.api.requests import address_of, network_of
from deployerp.api.routes import Route, public
from deployerp.api.schemas import Body, Envelope, View
from deployerp.domain import refresh_tokens
from deployerp.domain.audit_log import Deed, append
from deployerp.domain.base import utc_now
from deployerp.domain.errors import RateLimitExceeded, Unauthorized, ValidationFailed
from deployerp.domain.passwords import fits, hashed, is_outdated
from deployerp.domain.permissions import Role
from deployerp.domain.plans import Limits
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.secrets import digest
from deployerp.domain.users import Email, Membership, User, choose, lock_membership, memberships_of

router = APIRouter(prefix="/v1/auth", tags=["authentication"], route_class=Route)
log = structlog.get_logger()

# Tries at one account from one address, and from all of them: who guesses from many must not go on for
# ever, and who guesses from one must not lock its owner out.
_FROM_ONE_ADDRESS = Limits(per_minute=10, per_hour=60)
_FROM_EVERYWHERE = Limits(per_minute=60, per_hour=600)

RefreshSecret = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class SignIn(Body):
    email: Email = Field(examples=["ada@example.com"])
    password: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        examples=["correct horse battery"]
    )
    organization: Annotated[str, StringConstraints(min_length=1, max_length=63)] | None = Field(
        None, description="Id or slug; needed by members of several.", examples=["acme"]
    )


class Renewal(Body):
    refresh_token: RefreshSecret = Field(examples=["erp_refresh_..."])


class OrganizationSummary(View):
    id: UUID
    slug: str


class TokenRead(View):
    access_token: str = Field(description="For `Authorization: Bearer ...`.", examples=["eyJ..."])
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  (the kind, not a token)
    expires_in: int = Field(description="Seconds.", examples=[900])
    refresh_token: str = Field(
        description="Good for one exchange, for a new pair of both.", examples=["erp_refresh_..."]
    )
    organization: OrganizationSummary
    role: Role


@router.post("/token", responses=limited(Unauthorized, ValidationFailed), response_model=Envelope[TokenRead])
@public
async def create_token(body: SignIn, request: Request, shared: ContextDep) -> Response:
    """Signs a user in to one organization."""
    await _slow_down(request, shared, body.email)
    user = await _user_of(shared, body)
    async with shared.sessions() as session, session.begin():
        membership = await _chosen(session, user, body.organization)
        token = _begun(session, shared, membership)
        await append(session, membership.organization.id, _deed(request, user.id, "create_token"))
    return _told(request, token)


@router.post(
    "/refresh", responses=limited(Unauthorized, ValidationFailed), response_model=Envelope[TokenRead]
)
@public
async def refresh_token(body: Renewal, request: Request, shared: ContextDep) -> Response:
    """Exchanges a refresh token for a new pair; a second use ends all refresh tokens of its sign-in.

    Access tokens of that sign-in are good until they expire, `expiresIn` seconds after they were issued
    (`DEPLOYERP_ACCESS_TOKEN_MINUTES`).
    """
    async with shared.sessions() as session, session.begin():
        token = await _exchanged(session, request, shared, body.refresh_token)
    # Only now: what a stolen token has ended must be written.
    if token is None:
        raise Unauthorized("The refresh token is not good any more: sign in again.")
    return _told(request, token)


@router.post("/revoke", status_code=204, responses=limited(ValidationFailed))
@public
async def revoke_token(body: Renewal, request: Request, shared: ContextDep) -> Response:
    """Signs out: ends all refresh tokens of the sign-in; an unknown one is ended already.

    Its access tokens are good until they expire, `expiresIn` seconds after they were issued
    (`DEPLOYERP_ACCESS_TOKEN_MINUTES`).
    """
    async with shared.sessions() as session, session.begin():
        found = await refresh_tokens.find(session, body.refresh_token)
        if found is not None:
            # It holds back an exchange, of which the new token would get away.
            await lock_membership(session, found.user_id, found.organization_id)
            await _end(session, request, found, "revoke_token")
    return Response(status_code=204)


async def _slow_down(request: Request, shared: Context, email: str) -> None:
    network = network_of(address_of(request.scope))
    tries = (
        # Whoever asks: of one who shows a good key the gate counts the organization, which may have no limit.
        # First, so that what is refused for it spends nothing of an account.
        (network, Limits(shared.settings.address_requests_per_minute, None)),
        (digest(f"{email} {network}"), _FROM_ONE_ADDRESS),
        (digest(email), _FROM_EVERYWHERE),
    )
    for subject, limits in tries:
        standing = await shared.limiter.admit(f"sign-in:{subject}", limits)
        if standing is not None and not standing.admitted:
            raise RateLimitExceeded(
                f"Too many tries to sign in: try again in {standing.reset} seconds.",
                retry_after=standing.reset,
            )


async def _user_of(shared: Context, body: SignIn) -> User:
    """The user with this password. Raises `Unauthorized`, after the same work for every cause."""
    async with shared.sessions() as session:
        user = await session.scalar(select(User).where(col(User.email) == body.email))
    kept = user.password_hash if user is not None else None
    # No connection is held meanwhile: it takes longer than all the rest.
    if not await fits(body.password, kept) or user is None or kept is None:
        raise _wrong()
    if is_outdated(kept):
        renewed = await hashed(body.password)
        async with shared.sessions() as session, session.begin():
            await session.execute(
                update(User)
                .where(col(User.id) == user.id, col(User.password_hash) == kept)
                .values(password_hash=renewed)
            )
    return user


async def _chosen(session: AsyncSession, user: User, organization: str | None) -> Membership:
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


def _begun(
    session: AsyncSession, shared: Context, membership: Membership, family_id: UUID | None = None
) -> TokenRead:
    """An access token, and a refresh token that goes on with the family or begins one."""
    tokens = shared.authenticator.tokens
    user_id, organization = membership.user.id, membership.organization
    lifetime = timedelta(days=shared.settings.refresh_token_days)
    return TokenRead(
        access_token=tokens.issue(user_id, organization.id),
        expires_in=int(tokens.lifetime.total_seconds()),
        refresh_token=refresh_tokens.issue(session, user_id, organization.id, lifetime, family_id),
        organization=OrganizationSummary(id=organization.id, slug=organization.slug),
        role=membership.role,
    )


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
    return _begun(session, shared, membership, token.family_id)


async def _end(session: AsyncSession, request: Request, token: RefreshToken, action: str) -> None:
    """Ends the token's family; nothing else may follow in the transaction."""
    # Once: whoever holds an old token must not fill the log with it.
    if await refresh_tokens.end_family(session, token.family_id):
        await append(session, token.organization_id, _deed(request, token.user_id, action))


def _told(request: Request, token: TokenRead) -> Response:
    return answer(request, token.model_dump(by_alias=True), headers={"Cache-Control": "no-store"})


def _wrong() -> Unauthorized:
    return Unauthorized("The e-mail address or the password is wrong.")


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


def _deed(request: Request, user_id: UUID, action: str) -> Deed:
    return Deed(
        actor_type="user",
        actor_id=user_id,
        action=action,
        resource_type="user",
        resource_id=user_id,
        address=address_of(request.scope),
        request_id=request.scope["state"]["request_id"],
    )
