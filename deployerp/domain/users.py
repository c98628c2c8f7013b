"""People, and what they may do in which organization."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast
from uuid import UUID

from pydantic import AfterValidator, StringConstraints
from sqlalchemy import UniqueConstraint, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import registry
from sqlmodel import Field, col

from deployerp.domain.base import Record, one_of, time_field
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import ROLES, Role
from deployerp.domain.refresh_tokens import RefreshToken

# The rule of HTML's `<input type="email">`, and at least one dot: no comments, quotes or look-alike letters.
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
EMAIL_PATTERN = rf"^[a-zA-Z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})+$"

Email = Annotated[str, StringConstraints(max_length=254, pattern=EMAIL_PATTERN), AfterValidator(str.lower)]
"""An e-mail address; kept in lower case."""


class User(Record, table=True):
    """A person, known by an e-mail address in lower case; one without a password comes by another issuer."""

    __tablename__ = "users"

    email: str = Field(unique=True)
    name: str
    password_hash: str | None = None
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
    found = await session.execute(
        select(User, Member, Organization)
        .join(Member, col(Member.user_id) == col(User.id))
        .join(Organization, col(Organization.id) == col(Member.organization_id))
        .where(col(User.id) == user_id, col(User.disabled_at).is_(None))
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
    await session.execute(
        delete(RefreshToken).where(
            col(RefreshToken.user_id) == member.user_id,
            col(RefreshToken.organization_id) == member.organization_id,
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
        for table in (RefreshToken, Identity):
            await session.execute(delete(table).where(col(table.user_id) == user_id))
        await session.delete(user)
        await session.flush()
