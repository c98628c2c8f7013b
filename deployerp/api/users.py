"""Users: the people of the organization, and what they may do in it."""

from datetime import datetime
from types import SimpleNamespace
from typing import Any, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import func, select
from sqlmodel import col

from deployerp.api.access.callers import Caller
from deployerp.api.contract.changes import Change, ChangeDep, not_found
from deployerp.api.contract.envelope import Data, respond_single, respond_tagged, serialize
from deployerp.api.contract.errors import documented
from deployerp.api.contract.resources import find, serve
from deployerp.api.contract.routes import Route, needs
from deployerp.api.contract.schemas import Body, Envelope, ShownOnce, View
from deployerp.core.errors import Conflict, NotFound, PreconditionFailed
from deployerp.core.fields import EXAMPLE_TIME, DisplayName, EmailAddress, Id, Name
from deployerp.database.sessions import as_control_plane
from deployerp.domain import set_password_tokens
from deployerp.domain.email_addresses import member_with_address, user_of_verified
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import ROLE_PERMISSIONS, ROLES, MemberRole, Role
from deployerp.domain.users import (
    Email,
    Member,
    Person,
    User,
    end_membership,
    lock_owners,
    memberships_of,
)

router = APIRouter(prefix="/v1/users", tags=["users"], route_class=Route)


class UserCreate(Body):
    email: Email = Field(
        description="E-mail address, at most 254 characters; it is stored in lower case.",
        examples=["ada@example.com"],
    )
    name: Name = Field(examples=["Ada Lovelace"])
    role: MemberRole


class UserUpdate(Body):
    """Fields that are missing or null keep their value."""

    role: Role | None = Field(
        None, description="Role of the user in the organization.", examples=["developer"]
    )
    name: Name | None = Field(
        None, description="Display name, 1 to 100 printable characters.", examples=["Ada Lovelace"]
    )


class UserRead(View):
    id: Id
    email: EmailAddress
    email_verified_at: datetime | None = Field(
        description="Time at which the user was proven to own the address (RFC 3339, UTC). While it is null,"
        " the address is known to this organization only, which can reset the password.",
        examples=[None],
    )
    name: DisplayName = Field(examples=["Ada Lovelace"])
    role: MemberRole
    created_at: datetime = Field(
        description="Time at which the user joined the organization (RFC 3339, UTC).", examples=[EXAMPLE_TIME]
    )


class UserCreated(UserRead):
    set_password_token: ShownOnce = Field(
        description="Token for `POST /v1/auth/set-password`, valid once within 7 days. It is shown once."
        " Null for a user of another organization, who keeps the password.",
        examples=["dep_password_..."],
    )


@router.post(
    "",
    status_code=201,
    responses=documented(Conflict),
    response_model=Envelope[UserCreated],
    summary="Create a user",
)
@needs("manage:users")
async def create_user(body: UserCreate, change: ChangeDep) -> Response:
    """Creates a user, who sets a password with the token of the response.

    The e-mail address is known to this organization only until it is verified. If the address is the verified
    one of an existing user, that user becomes a member, provided that the caller manages users in another
    organization of the user.
    """
    _check_grant(change.caller, body.role)
    organization_id = change.caller.organization_id
    token = None
    async with as_control_plane(change.session):
        await _check_new(change, body.email)
        user = await _user_in_charge(change, body.email)
        is_new = user is None
        if user is None:
            user = User(email=body.email, name=body.name, home_organization_id=organization_id)
            await change.add(user, _already(body.email))
        member = Member(organization_id=organization_id, user_id=user.id, role=body.role)
        await change.put(member, _already(body.email))
        change.about, change.parts = user, [member]
        if is_new:
            token = await set_password_tokens.issue(change.session, user.id, organization_id)
    more = {"setPasswordToken": token}
    return respond_tagged(change.request, _serialize_user(user, member), status=201, more=more)


_LISTING = serve(
    router,
    cast("Any", Person),
    UserRead,
    filters={"role": Literal[ROLES], "email": Email},
    search=("email", "name"),
    sorts=("created_at", "email", "name"),
    single_view=False,
)


@router.get("/{id}", responses=documented(NotFound), response_model=Envelope[UserRead], summary="Get a user")
@needs("read:users")
async def get_user(id: UUID, request: Request) -> Response:
    """Returns one user by ID."""
    return respond_single(request, await find(request, _LISTING, "User", id))


@router.patch(
    "/{id}",
    responses=documented(NotFound, Conflict, PreconditionFailed),
    response_model=Envelope[UserRead],
    summary="Update a user",
)
@needs("manage:users")
async def update_user(id: UUID, body: UserUpdate, change: ChangeDep) -> Response:
    """Changes the role or the name of a user. A new role takes effect within five seconds.

    A new role also invalidates the set-password token of the user.
    """
    user, member, owners = await _subject(change, id)
    if body.role is not None and body.role != member.role:
        _check_grant(change.caller, cast("Role", member.role))
        _check_grant(change.caller, body.role)
        _check_owners(owners, user)
        member.role = body.role
        change.forgotten.append(user.id)
        async with as_control_plane(change.session):
            # Whoever had it made for the role before must not come by the new one.
            await set_password_tokens.end(change.session, user.id, member.organization_id)
    if body.name is not None and body.name != user.name:
        async with as_control_plane(change.session):
            await _check_alone(change, user)
            user.name = body.name
    await change.session.flush()
    return respond_tagged(change.request, _serialize_user(user, member))


@router.delete(
    "/{id}",
    status_code=204,
    responses=documented(NotFound, Conflict, PreconditionFailed),
    summary="Remove a user",
)
@needs("delete:users")
async def remove_user(id: UUID, change: ChangeDep) -> Response:
    """Removes a user from the organization and ends their sign-ins in it.

    A user without another organization is deleted.
    """
    user, member, owners = await _subject(change, id)
    _check_grant(change.caller, cast("Role", member.role))
    _check_owners(owners, user)
    async with as_control_plane(change.session):
        await end_membership(change.session, member)
    change.forgotten.append(user.id)
    return Response(status_code=204)


@router.post(
    "/{id}/reset-password",
    responses=documented(NotFound, Conflict),
    response_model=Envelope[UserCreated],
    summary="Reset a password",
)
@needs("manage:users")
async def reset_password(id: UUID, change: ChangeDep) -> Response:
    """Creates a new set-password token and invalidates the previous one.

    The current password stays valid until the token is used. The e-mail address of the user must not be
    verified, and the user must have no other organization. Other users change their password themselves or
    ask the operator of the control plane.
    """
    user, member, _ = await _subject(change, id)
    _check_grant(change.caller, cast("Role", member.role))
    if user.id == change.caller.actor_id:
        raise Conflict("This is your own password: change it with `POST /v1/me/password`.")
    if user.email_verified_at is not None:
        raise Conflict(
            f"{user.email} is verified: only the user can change the password, with `POST /v1/me/password`."
            " Whoever runs this control plane can reset it, with `deployerp users reset-password`."
        )
    if user.disabled_at is not None:
        raise Conflict("The user is disabled: whoever runs this control plane can enable them.")
    async with as_control_plane(change.session):
        token = await set_password_tokens.issue(change.session, user.id, member.organization_id)
    return respond_tagged(change.request, _serialize_user(user, member), more={"setPasswordToken": token})


async def _subject(change: Change, id: UUID) -> tuple[User, Member, list[UUID]]:
    """The user and their membership, locked, and who owns the organization.

    Raises `NotFound` and `PreconditionFailed`.
    """
    organization_id = change.caller.organization_id
    owners = await lock_owners(change.session, organization_id)
    found = (
        await change.session.execute(
            select(Member, User)
            .join(User, col(User.id) == col(Member.user_id))
            .where(col(Member.organization_id) == organization_id, col(Member.user_id) == id)
            .with_for_update(of=Member)
        )
    ).one_or_none()
    if found is None:
        raise not_found("User", id)
    member, user = found
    change.about, change.parts = user, [member]
    change.expect(_serialize_user(user, member))
    return user, member, owners


def _serialize_user(user: User, member: Member) -> Data:
    person = SimpleNamespace(
        id=user.id,
        email=user.email,
        email_verified_at=user.email_verified_at,
        name=user.name,
        role=member.role,
        created_at=member.created_at,
    )
    return serialize(UserRead, person)


def _check_grant(caller: Caller, role: Role) -> None:
    caller.cover(ROLE_PERMISSIONS[role], f"role `{role}`", "ask somebody who has it")


def _check_owners(owners: list[UUID], user: User) -> None:
    if owners == [user.id]:
        raise Conflict("They are the only owner: make somebody else an owner first.")


async def _check_new(change: Change, email: str) -> None:
    """Raises `Conflict` where a member has the address; no other comes by it until the transaction ends."""
    organization_id = change.caller.organization_id
    await change.session.execute(
        select(col(Organization.id))
        .where(col(Organization.id) == organization_id)
        .with_for_update(key_share=True)
    )
    here = await member_with_address(change.session, organization_id, email)
    if here is not None:
        disabled = ", and disabled: whoever runs this control plane can enable them"
        raise Conflict(f"{email} is a member already{disabled if here.disabled_at else ''}.")


async def _user_in_charge(change: Change, email: str) -> User | None:
    """The user whose verified address it is, where the caller manages users in an organization of theirs.

    To anybody else that user does not exist: an address must not tell who uses this control plane.
    """
    user = await user_of_verified(change.session, email)
    if user is None:
        return None
    theirs = {each.organization.id for each in await memberships_of(change.session, user.id)}
    callers = await memberships_of(change.session, change.caller.actor_id)
    in_charge = {each.organization.id for each in callers if "manage:users" in ROLE_PERMISSIONS[each.role]}
    return user if theirs & in_charge else None


async def _check_alone(change: Change, user: User) -> None:
    """Raises `Conflict` for a user who belongs to others too."""
    memberships = await change.session.scalar(
        select(func.count()).select_from(Member).where(col(Member.user_id) == user.id)
    )
    if memberships != 1 and user.id != change.caller.actor_id:
        raise Conflict("They are members of other organizations too: only they can change their name.")


def _already(email: str) -> Conflict:
    return Conflict(f"{email} is a member already.")
