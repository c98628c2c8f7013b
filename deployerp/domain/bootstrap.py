"""What operators create outside of requests, each with its audit entry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.core.errors import Conflict, NotFound
from deployerp.database.base import utc_now
from deployerp.domain import set_password_tokens
from deployerp.domain.api_keys import ApiKey, new_api_key
from deployerp.domain.audit.log import AuditRecord, append, snapshot
from deployerp.domain.email_addresses import member_with_address, user_of_verified
from deployerp.domain.organizations import Organization
from deployerp.domain.plans import Plan
from deployerp.domain.users import Member, User, lock_membership


@dataclass(frozen=True)
class Bootstrapped:
    """What bootstrapping created; the tokens exist only here."""

    organization: Organization
    owner: User
    # Slugs of the organizations that a known owner was in before; None for a new one.
    known_in: Sequence[str] | None
    # Of a new owner, who chooses a password with it.
    set_password_token: str | None = field(repr=False)
    key: ApiKey
    token: str = field(repr=False)


async def bootstrap_organization(
    session: AsyncSession, *, slug: str, name: str, email: str, existing_user: bool, plan: Plan
) -> Bootstrapped:
    """Adds an organization, its owner and its first key to the transaction; `email` is in lower case.

    The operator vouches for the address: it counts as verified. Raises `Conflict` for a slug in use and for
    a user who is not expected or disabled, `NotFound` for one who is expected and not there.
    """
    organization = Organization(slug=slug, name=name, plan=plan)
    await add_organization(session, organization)
    known_in = None
    if existing_user:
        owner, known_in = await _known_owner(session, email)
    else:
        owner = await _new_owner(session, email)
    await _add_member(session, organization, owner, is_new=known_in is None)
    set_password = None
    if known_in is None:
        set_password = await set_password_tokens.issue(session, owner.id, organization.id)
    key, token = await add_key(session, organization.id, "first key", "admin")
    return Bootstrapped(organization, owner, known_in, set_password, key, token)


async def reset_password(session: AsyncSession, slug: str, email: str) -> str:
    """Makes a set-password token for a member of an organization, whoever they are, and returns it.

    Raises `NotFound`, and `Conflict` for a disabled user.
    """
    organization = await session.scalar(select(Organization).where(col(Organization.slug) == slug))
    if organization is None:
        raise NotFound(f"Organization {slug!r} does not exist: check --organization.")
    user = await member_with_address(session, organization.id, email)
    if user is None:
        raise NotFound(f"No member of {slug} has the address {email}: check --organization and --email.")
    if await lock_membership(session, user.id, organization.id) is None:
        raise Conflict(f"{email} is disabled and cannot sign in.")
    token = await set_password_tokens.issue(session, user.id, organization.id)
    told = snapshot(user)
    await append(session, organization.id, _audit_record("reset_password", "user", user.id, told, told))
    return token


async def add_organization(session: AsyncSession, organization: Organization) -> None:
    """Adds it to the transaction. Raises `Conflict` for a slug in use."""
    try:
        async with session.begin_nested():
            session.add(organization)
    except IntegrityError:
        slug = organization.slug
        raise Conflict(
            f"Organization {slug} already exists: choose another slug, or create a key for it with"
            f" `deployerp keys create --organization {slug}`."
        ) from None
    deed = _audit_record("bootstrap", "organization", organization.id, snapshot(organization))
    await append(session, organization.id, deed)


async def add_key(
    session: AsyncSession, organization_id: UUID, name: str, level: str, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Adds a key to the transaction, and returns it with its token, which exists only here."""
    key, token = new_api_key(organization_id, name, level, expires_at)
    session.add(key)
    await session.flush()
    await append(session, organization_id, _audit_record("create_api_key", "api_key", key.id, snapshot(key)))
    return key, token


async def _add_member(
    session: AsyncSession, organization: Organization, owner: User, *, is_new: bool
) -> None:
    member = Member(organization_id=organization.id, user_id=owner.id, role="owner")
    session.add(member)
    await session.flush()
    # As the API tells it: of the user, with what the membership adds.
    user, added = snapshot(owner), snapshot(member)
    del added["id"]
    deed = _audit_record("create_user", "user", owner.id, user | added, None if is_new else user)
    await append(session, organization.id, deed)


async def _new_owner(session: AsyncSession, email: str) -> User:
    owner = User(email=email, email_verified_at=utc_now(), name=email.partition("@")[0])
    try:
        async with session.begin_nested():
            session.add(owner)
    except IntegrityError:
        _, known_in = await _known_owner(session, email)
        raise Conflict(
            f"{email} already has an account, in {', '.join(known_in) or 'no organization'}. Add"
            " --existing-user if this is the owner; otherwise choose another address."
        ) from None
    return owner


async def _known_owner(session: AsyncSession, email: str) -> tuple[User, Sequence[str]]:
    """The user whose verified address this is, and the slugs of their organizations."""
    owner = await user_of_verified(session, email)
    if owner is None:
        raise NotFound(f"No user has the verified address {email}: omit --existing-user to create one.")
    if owner.disabled_at is not None:
        raise Conflict(f"{email} is disabled and cannot sign in: choose another owner.")
    slugs = await session.scalars(
        select(col(Organization.slug))
        .join(Member, col(Member.organization_id) == col(Organization.id))
        .where(col(Member.user_id) == owner.id)
        .order_by(col(Organization.slug))
    )
    return owner, slugs.all()


def _audit_record(
    action: str,
    resource_type: str,
    resource_id: UUID,
    after: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
) -> AuditRecord:
    return AuditRecord(
        actor_type="system",
        actor_id=None,
        action=action,
        resource_type=resource_type,
        resource_id=resource_id,
        # There is no request: the entry has an id like those that requests make.
        request_id=uuid4().hex,
        before=before,
        after=after,
    )
