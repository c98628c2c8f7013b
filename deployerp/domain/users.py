"""People, and what they may do in which organization."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast
from uuid import UUID

from pydantic import AfterValidator, StringConstraints
from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    Index,
    UniqueConstraint,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import registry
from sqlmodel import Field, col

from deployerp.core.fields import Pattern
from deployerp.database.base import Record, one_of, time_field, utc_now, where
from deployerp.domain import set_password_tokens
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import ROLES, Role
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.set_password_tokens import SetPasswordToken

# The rule of HTML's `<input type="email">`, and at least one dot: no comments, quotes or look-alike letters.
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
EMAIL_PATTERN = rf"^[a-zA-Z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+$"

Email = Annotated[
    str,
    StringConstraints(max_length=254),
    Pattern(EMAIL_PATTERN, "must be an e-mail address such as ada@example.com"),
    AfterValidator(str.lower),
]
"""An e-mail address; kept in lower case."""


_VERIFIED, _UNVERIFIED = where("email_verified_at IS NOT NULL"), where("email_verified_at IS NULL")


class User(Record, table=True):
    """A person, known by an e-mail address in lower case.

    A verified address belongs to one user of the whole control plane. An unverified one belongs to the
    user's home organization: others can use it too, and the user is a member nowhere else.
    """

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("(email_verified_at IS NULL) = (home_organization_id IS NOT NULL)", name="home"),
        Index(
            "uq_users_verified_email",
            "email",
            unique=True,
            **_VERIFIED,
        ),
        Index(
            "uq_users_unverified_email",
            "email",
            "home_organization_id",
            unique=True,
            **_UNVERIFIED,
        ),
    )

    email: str
    email_verified_at: datetime | None = time_field()
    home_organization_id: UUID | None = Field(default=None, foreign_key="organizations.id")
    name: str
    # None until the user has chosen one; some only come by another issuer of tokens.
    password_hash: str | None = None
    # Access tokens from before it are not good any more.
    password_changed_at: datetime | None = time_field()
    disabled_at: datetime | None = time_field()


class Member(Record, table=True):
    """What a user may do in an organization; teams and invitations will stand beside it."""

    __tablename__ = "members"
    __table_args__ = (UniqueConstraint("organization_id", "user_id"), one_of("role", ROLES))

    organization_id: UUID = Field(foreign_key="organizations.id")
    user_id: UUID = Field(foreign_key="users.id", index=True)
    role: str


class Identity(Record, table=True):
    """A user as an external issuer of tokens knows them."""

    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    user_id: UUID = Field(foreign_key="users.id", index=True)
    issuer: str
    subject: str


class Person:
    """A user as one organization sees them; to be listed, and never to be written."""


_PEOPLE = (
    select(
        col(User.id),
        col(User.email),
        col(User.email_verified_at),
        col(User.name),
        col(Member.organization_id),
        col(Member.role),
        # When they came to the organization.
        col(Member.created_at),
    )
    .join(Member, col(Member.user_id) == col(User.id))
    .subquery("people")
)
registry().map_imperatively(Person, _PEOPLE, primary_key=(_PEOPLE.c.organization_id, _PEOPLE.c.id))


@dataclass(frozen=True)
class Membership:
    """A user in one organization."""

    user: User
    member: Member
    organization: Organization

    @property
    def role(self) -> Role:
        return cast("Role", self.member.role)


async def memberships_of(session: AsyncSession, user_id: UUID) -> list[Membership]:
    """Where a user is a member; nowhere, once they are disabled."""
    return await _find_memberships(session, col(User.id) == user_id)


async def memberships_of_address(session: AsyncSession, email: str) -> list[Membership]:
    """Those of all users with this address who can sign in."""
    return await _find_memberships(session, col(User.email) == email)


async def _find_memberships(session: AsyncSession, condition: ColumnElement[bool]) -> list[Membership]:
    found = await session.execute(
        select(User, Member, Organization)
        .join(Member, col(Member.user_id) == col(User.id))
        .join(Organization, col(Organization.id) == col(Member.organization_id))
        .where(condition, col(User.disabled_at).is_(None))
        .order_by(col(Organization.slug))
    )
    return [Membership(*row) for row in found]


def choose(memberships: Sequence[Membership], organization: str | None) -> Membership | None:
    """The one in the organization of this id or slug; where none is named, the only one."""
    fitting = [
        each
        for each in memberships
        if organization is None or organization in (str(each.organization.id), each.organization.slug)
    ]
    # A slug may look like the id of another organization: then neither is meant for sure.
    return fitting[0] if len(fitting) == 1 else None


async def lock_membership(session: AsyncSession, user_id: UUID, organization_id: UUID) -> Membership | None:
    """A membership that stays as it is until the transaction ends."""
    held = await session.scalar(
        select(Member)
        .where(col(Member.user_id) == user_id, col(Member.organization_id) == organization_id)
        .with_for_update()
    )
    if held is None:
        return None
    found = [each for each in await memberships_of(session, user_id) if each.member.id == held.id]
    return found[0] if found else None


async def lock_owners(session: AsyncSession, organization_id: UUID) -> list[UUID]:
    """Ids of the owners of an organization who can sign in; no others come until the transaction ends."""
    found = await session.scalars(
        select(col(Member.user_id))
        .join(User, col(User.id) == col(Member.user_id))
        .where(
            col(Member.organization_id) == organization_id,
            col(Member.role) == "owner",
            col(User.disabled_at).is_(None),
        )
        .order_by(col(Member.id))
        .with_for_update(of=Member)
    )
    return list(found)


async def end_membership(session: AsyncSession, member: Member) -> None:
    """Takes a user out of an organization, with what keeps them signed in.

    A user who is in no organization any more is forgotten: whoever adds the same address again gets a
    new user, with nothing that others knew or set.
    """
    for table in (RefreshToken, SetPasswordToken):
        await session.execute(
            delete(table).where(
                col(table.user_id) == member.user_id, col(table.organization_id) == member.organization_id
            )
        )
    await session.delete(member)
    await session.flush()
    user_id = member.user_id
    # Of two organizations that let go of a user at once, the second sees what the first has done.
    user = await session.scalar(select(User).where(col(User.id) == user_id).with_for_update())
    left = await session.scalar(
        select(func.count()).select_from(Member).where(col(Member.user_id) == user_id)
    )
    if user is not None and not left:
        await forget_user(session, user)


async def forget_user(session: AsyncSession, user: User) -> None:
    """Deletes a user who is a member nowhere, with all that belongs to them."""
    for table in (RefreshToken, SetPasswordToken, Identity):
        await session.execute(delete(table).where(col(table.user_id) == user.id))
    await session.delete(user)
    await session.flush()


async def lock_memberships(session: AsyncSession, user_id: UUID) -> None:
    """Holds all memberships of a user, before anything else of theirs is changed.

    Exchanges of refresh tokens and sign-ins hold one: they come before, or see the change.
    """
    held = select(col(Member.id)).where(col(Member.user_id) == user_id).order_by(col(Member.id))
    await session.execute(held.with_for_update())


async def change_password(
    session: AsyncSession, user_id: UUID, password_hash: str | None, *, instead_of: str | None = None
) -> bool:
    """Replaces a password and ends all that the one before has given: sign-ins and set-password tokens.

    With `instead_of` the present hash must be that one. Says whether there was something to replace.
    """
    await lock_memberships(session, user_id)
    now = utc_now()
    changed = (
        update(User)
        .where(col(User.id) == user_id, col(User.disabled_at).is_(None))
        .values(password_hash=password_hash, password_changed_at=now)
        .returning(col(User.id))
    )
    if instead_of is not None:
        changed = changed.where(col(User.password_hash) == instead_of)
    if not (await session.execute(changed)).all():
        return False
    await session.execute(
        update(RefreshToken)
        .where(col(RefreshToken.user_id) == user_id, col(RefreshToken.revoked_at).is_(None))
        .values(revoked_at=now)
    )
    await set_password_tokens.end(session, user_id)
    return True
