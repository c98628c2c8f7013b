"""Whose an e-mail address is: one user's once it is verified, and an organization's until then."""

from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.database.base import utc_now
from deployerp.domain.users import (
    Member,
    Membership,
    User,
    change_password,
    choose,
    forget_user,
    lock_membership,
    memberships_of_address,
)


async def user_of_verified(session: AsyncSession, email: str) -> User | None:
    """The user whose verified address this is."""
    found: User | None = await session.scalar(
        select(User).where(col(User.email) == email, col(User.email_verified_at).is_not(None))
    )
    return found


async def member_with_address(session: AsyncSession, organization_id: UUID, email: str) -> User | None:
    """The member of an organization with this address, also a disabled one; there is at most one."""
    found: User | None = await session.scalar(
        select(User)
        .join(Member, col(Member.user_id) == col(User.id))
        .where(col(User.email) == email, col(Member.organization_id) == organization_id)
    )
    return found


async def user_who_signs_in(session: AsyncSession, email: str, organization: str | None) -> User | None:
    """The only user that a sign-in is about: a password is compared once, whoever else has the address.

    Where an organization is named, its member with the address; otherwise the user whose verified address
    it is. What other organizations do with the address makes no difference.
    """
    if organization is None:
        return await user_of_verified(session, email)
    membership = choose(await memberships_of_address(session, email), organization)
    return membership.user if membership is not None else None


async def verify_address(session: AsyncSession, membership: Membership) -> Membership | None:
    """Gives an unverified user to the owner of the mailbox, who has just proven to be that.

    Nothing stays that others may know or hold: no password, no token. Where the owner is a user already,
    the membership becomes theirs and the unverified user is deleted. None where that cannot be. Raises
    `IntegrityError` where the address is verified for another user at this moment.
    """
    user, member = membership.user, membership.member
    if await lock_membership(session, user.id, member.organization_id) is None:
        return None
    await session.refresh(user)
    if user.email_verified_at is not None:
        return membership
    owner = await user_of_verified(session, user.email)
    if owner is None:
        await change_password(session, user.id, None)
        await session.execute(
            update(User)
            .where(col(User.id) == user.id)
            .values(email_verified_at=utc_now(), home_organization_id=None)
        )
        await session.refresh(user)
        return membership
    if owner.disabled_at is not None:
        return None
    member.user_id = owner.id
    await session.flush()
    await forget_user(session, user)
    return await lock_membership(session, owner.id, member.organization_id)
