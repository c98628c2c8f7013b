"""Passwords of people: each chooses their own, with a one-time token or instead of the present one."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.api.access.callers import Caller
from deployerp.api.contract.dependencies import CallerDep, Context, ContextDep
from deployerp.api.contract.envelope import respond
from deployerp.api.contract.errors import invalid_field, limited
from deployerp.api.contract.routes import Route, public
from deployerp.api.contract.schemas import Body, Envelope, View
from deployerp.api.sign_ins import (
    OrganizationSummary,
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
from deployerp.core.errors import Conflict, Forbidden, Unauthorized, ValidationFailed
from deployerp.core.fields import EmailAddress
from deployerp.core.passwords import LONGEST, SHORTEST, check_password, fits, hashed
from deployerp.domain import set_password_tokens
from deployerp.domain.audit.log import append
from deployerp.domain.organizations import Organization
from deployerp.domain.users import User, change_password, lock_membership, lock_memberships

router = APIRouter(prefix="/v1", tags=["authentication"], route_class=Route)

NewPassword = Annotated[
    str,
    StringConstraints(min_length=SHORTEST, max_length=LONGEST),
    Field(
        description="New password, 12 to 256 characters, not the e-mail address.",
        examples=["correct horse battery"],
    ),
]


class PasswordChoice(Body):
    token: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        description="Set-password token from whoever created the user or reset the password.",
        examples=["dep_password_..."],
    )
    password: NewPassword


class PasswordChange(Body):
    current_password: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="Current password.", examples=["wrong horse battery"]
    )
    new_password: NewPassword


class PasswordSet(View):
    """What to sign in with, besides the password."""

    email: EmailAddress
    organization: OrganizationSummary = Field(description="Organization to sign in to.")


@router.post(
    "/auth/set-password",
    responses=limited(Unauthorized, ValidationFailed),
    response_model=Envelope[PasswordSet],
    summary="Set a password",
)
@public
async def set_password(body: PasswordChoice, request: Request, shared: ContextDep) -> Response:
    """Sets the password of a user with a set-password token, and ends all sign-ins of the user.

    It does not verify the e-mail address.
    """
    async with token_turn(request, shared, "set-password") as failures:
        found = await _of_token(shared, body.token)
        if found is not None:
            user, organization = found
            _check_new("password", body.password, user.email)
            # No connection is held meanwhile: it takes longer than all the rest.
            password_hash = await hashed(body.password)
            async with shared.sessions() as session, session.begin():
                done = await _set(session, request, user, organization.id, body.token, password_hash)
        if found is None or not done:
            await count(shared, failures)
            raise Unauthorized(
                "The token is not good: it was used, has expired, or there is a newer one. Ask whoever"
                " manages the users of your organization for a new one."
            )
    shared.authenticator.forget(user.id)
    told = PasswordSet(email=user.email, organization=OrganizationSummary.model_validate(organization))
    return respond(request, told.model_dump(by_alias=True), headers={"Cache-Control": "no-store"})


# Only users have a password, and each may change their own: there is no permission that all of them have.
@router.post(
    "/me/password",
    responses=limited(Unauthorized, Forbidden, Conflict, ValidationFailed),
    response_model=Envelope[TokenRead],
    openapi_extra={"security": [{"bearer": []}]},
    summary="Change your password",
)
@public
async def change_own_password(
    body: PasswordChange, request: Request, shared: ContextDep, caller: CallerDep
) -> Response:
    """Changes the password of the caller and ends all sign-ins. The response has new tokens."""
    user = await _caller_with_password(shared, caller)
    tries = tries_at(request, shared, str(user.id))
    async with turn(shared, tries):
        if not await fits(body.current_password, user.password_hash):
            await count_failure(shared, tries)
            raise invalid_field("currentPassword", "is not your password")
    shared.guesses.remember(tries.credential)
    _check_new("newPassword", body.new_password, user.email)
    if await fits(body.new_password, user.password_hash):
        raise invalid_field("newPassword", "must be another than the present one")
    password_hash = await hashed(body.new_password)
    async with shared.sessions() as session, session.begin():
        token = await _changed(session, request, shared, caller, user, password_hash)
    shared.authenticator.forget(user.id)
    return respond_tokens(request, token)


async def _of_token(shared: Context, secret: str) -> tuple[User, Organization] | None:
    async with shared.sessions() as session:
        token = await set_password_tokens.find(session, secret)
        if token is None:
            return None
        user = await session.get_one(User, token.user_id)
        organization = await session.get_one(Organization, token.organization_id)
    return None if user.disabled_at is not None else (user, organization)


async def _set(
    session: AsyncSession,
    request: Request,
    user: User,
    organization_id: UUID,
    secret: str,
    password_hash: str,
) -> bool:
    """Uses the token up. Says whether it was still good."""
    await lock_memberships(session, user.id)
    if not await set_password_tokens.use(session, secret):
        return False
    if not await change_password(session, user.id, password_hash):
        return False
    await append(session, organization_id, audit_record_of(request, user.id, "set_password"))
    return True


async def _caller_with_password(shared: Context, caller: Caller) -> User:
    """Raises `Forbidden`, `Conflict`, `Unauthorized`."""
    if caller.actor_type != "user":
        raise Forbidden("An API key has no password: send a user's access token, from `POST /v1/auth/token`.")
    async with shared.sessions() as session:
        user = await session.scalar(select(User).where(col(User.id) == caller.actor_id))
    if user is None:
        raise _ended()
    if user.password_hash is None:
        raise Conflict(
            "You have no password: you sign in with your identity provider. Where you need one, ask whoever"
            " manages the users of your organization, or runs this control plane, to reset it."
        )
    return user


async def _changed(
    session: AsyncSession,
    request: Request,
    shared: Context,
    caller: Caller,
    user: User,
    password_hash: str,
) -> TokenRead:
    """Raises `Conflict` where the password was changed meanwhile, `Unauthorized` for no member any more."""
    await lock_memberships(session, user.id)
    membership = await lock_membership(session, user.id, caller.organization_id)
    if membership is None:
        raise _ended()
    if not await change_password(session, user.id, password_hash, instead_of=user.password_hash):
        raise Conflict("Your password was changed at the same moment: sign in again.")
    token = issue_tokens(session, shared, membership)
    await append(session, caller.organization_id, audit_record_of(request, user.id, "change_own_password"))
    return token


def _check_new(field: str, password: str, email: str) -> None:
    try:
        check_password(password, email)
    except ValueError as error:
        raise invalid_field(field, str(error)) from None


def _ended() -> Unauthorized:
    return Unauthorized("Your access has just ended: sign in again.")
