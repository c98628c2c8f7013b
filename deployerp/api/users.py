"""Users: the people of the organization, and what they may do in it."""

from contextlib import suppress
from datetime import datetime
from types import SimpleNamespace
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy import func, select
from sqlmodel import col

from deployerp.api.answers import Data, shown, single, tagged
from deployerp.api.callers import Caller
from deployerp.api.changes import Change, ChangeDep, missing
from deployerp.api.errors import documented, invalid_field
from deployerp.api.resources import find, serve
from deployerp.api.routes import Route, beforehand, needs
from deployerp.api.schemas import Body, Envelope, View
from deployerp.domain.database import as_control_plane
from deployerp.domain.errors import Conflict, NotFound, PreconditionFailed
from deployerp.domain.names import Name
from deployerp.domain.passwords import LONGEST, SHORTEST, check_password, hashed
from deployerp.domain.permissions import ROLE_PERMISSIONS, ROLES, Role
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
    email: Email = Field(examples=["ada@example.com"])
    name: Name = Field(examples=["Ada Lovelace"])
    role: Role
    password: Annotated[str, StringConstraints(min_length=SHORTEST, max_length=LONGEST)] | None = Field(
        None,
        description="Without one they come by a trusted issuer of tokens.",
        examples=["correct horse battery"],
    )


class UserUpdate(Body):
    """What is left out or null stays as it is."""

    role: Role | None = None
    name: Name | None = Field(None, examples=["Ada Lovelace"])


class UserRead(View):
    id: UUID
    email: str = Field(examples=["ada@example.com"])
    name: str = Field(examples=["Ada Lovelace"])
    role: Role
    created_at: datetime = Field(description="When they came to the organization.")


async def _hash_password(request: Request) -> None:
    """Notes the hash of a good password; what else is wrong with the body, the endpoint says."""
    with suppress(ValueError, RecursionError):
        given = UserCreate.model_validate(await request.json())
        if given.password is not None:
            check_password(given.password, given.email)
            request.state.password_hash = await hashed(given.password)


@router.post("", status_code=201, responses=documented(Conflict), response_model=Envelope[UserRead])
@needs("manage:users")
@beforehand(_hash_password)
async def create_user(body: UserCreate, change: ChangeDep) -> Response:
    """Makes a user, or a member of one whom the caller has in charge in another organization already."""
    _check_grant(change.caller, body.role)
    if body.password is not None:
        _check_password(body.password, body.email)
    password_hash = None if body.password is None else change.request.state.password_hash
    async with as_control_plane(change.session):
        user = await change.session.scalar(select(User).where(col(User.email) == body.email))
        if user is None:
            user = User(email=body.email, name=body.name, password_hash=password_hash)
            await change.add(user, _in_use(body.email))
        else:
            await _check_known(change, user, body)
        member = Member(organization_id=change.caller.organization_id, user_id=user.id, role=body.role)
        await change.add(member, _in_use(body.email))
        change.about, change.parts = user, [member]
    return tagged(change.request, _told(user, member), status=201)


_LISTING = serve(
    router,
    cast("Any", Person),
    UserRead,
    filters={"role": Literal[ROLES], "email": Email},
    search=("email", "name"),
    sorts=("created_at", "email", "name"),
    single_view=False,
)


@router.get("/{id}", responses=documented(NotFound), response_model=Envelope[UserRead])
@needs("read:users")
async def get_user(id: UUID, request: Request) -> Response:
    return single(request, await find(request, _LISTING, "User", id))


@router.patch(
    "/{id}", responses=documented(NotFound, Conflict, PreconditionFailed), response_model=Envelope[UserRead]
)
@needs("manage:users")
async def update_user(id: UUID, body: UserUpdate, change: ChangeDep) -> Response:
    """Changes a role, which counts within seconds, or a name."""
    user, member, owners = await _subject(change, id)
    if body.role is not None and body.role != member.role:
        _check_grant(change.caller, cast("Role", member.role))
        _check_grant(change.caller, body.role)
        _check_owners(owners, user)
        member.role = body.role
        change.forgotten.append(user.id)
    if body.name is not None and body.name != user.name:
        async with as_control_plane(change.session):
            await _check_alone(change, user)
            user.name = body.name
    await change.session.flush()
    return tagged(change.request, _told(user, member))


@router.delete("/{id}", status_code=204, responses=documented(NotFound, Conflict, PreconditionFailed))
@needs("delete:users")
async def remove_user(id: UUID, change: ChangeDep) -> Response:
    """Ends the membership and what keeps the user signed in to it; without another one they are forgotten."""
    user, member, owners = await _subject(change, id)
    _check_grant(change.caller, cast("Role", member.role))
    _check_owners(owners, user)
    async with as_control_plane(change.session):
        await end_membership(change.session, member)
    change.forgotten.append(user.id)
    return Response(status_code=204)


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
        raise missing("User", id)
    member, user = found
    change.about, change.parts = user, [member]
    change.expect(_told(user, member))
    return user, member, owners


def _told(user: User, member: Member) -> Data:
    person = SimpleNamespace(
        id=user.id, email=user.email, name=user.name, role=member.role, created_at=member.created_at
    )
    return shown(UserRead, person)


def _check_grant(caller: Caller, role: Role) -> None:
    caller.cover(ROLE_PERMISSIONS[role], f"role `{role}`", "ask somebody who has it")


def _check_owners(owners: list[UUID], user: User) -> None:
    if owners == [user.id]:
        raise Conflict("They are the only owner: make somebody else an owner first.")


def _check_password(password: str, email: str) -> None:
    try:
        check_password(password, email)
    except ValueError as error:
        raise invalid_field("password", str(error)) from None


async def _check_known(change: Change, user: User, body: UserCreate) -> None:
    """Whether a user of other organizations may be added. Raises `Conflict`, `ValidationFailed`.

    Whoever made the user may know the password: only who answers for them there may bring them here.
    """
    # Asked apart from the memberships in which they can act: who is disabled has none of those.
    here = await change.session.scalar(
        select(col(Member.id)).where(
            col(Member.user_id) == user.id, col(Member.organization_id) == change.caller.organization_id
        )
    )
    if here is not None:
        disabled = ", and disabled: whoever runs this control plane can enable them"
        raise Conflict(f"{body.email} is a member already{disabled if user.disabled_at else ''}.")
    theirs = {each.organization.id for each in await memberships_of(change.session, user.id)}
    callers = await memberships_of(change.session, change.caller.actor_id)
    in_charge = {each.organization.id for each in callers if "manage:users" in ROLE_PERMISSIONS[each.role]}
    if not theirs & in_charge:
        raise _in_use(body.email)
    if body.password is not None:
        raise invalid_field("password", "must be left out: they have signed in elsewhere and keep theirs")


async def _check_alone(change: Change, user: User) -> None:
    """Raises `Conflict` for a user who belongs to others too."""
    memberships = await change.session.scalar(
        select(func.count()).select_from(Member).where(col(Member.user_id) == user.id)
    )
    if memberships != 1 and user.id != change.caller.actor_id:
        raise Conflict("They are members of other organizations too: only they can change their name.")


def _in_use(email: str) -> Conflict:
    return Conflict(
        f"{email} belongs to a user of another organization: it can be added by somebody who manages users"
        " in both.",
        details={"field": "email"},
    )
