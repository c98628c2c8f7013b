"""The beginning of an organization: itself, its owner and its first key, all of them or none."""

from dataclasses import dataclass, field
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.domain.api_keys import ApiKey, new_api_key
from deployerp.domain.audit_log import Deed, append, snapshot
from deployerp.domain.errors import Conflict
from deployerp.domain.organizations import Organization
from deployerp.domain.passwords import hashed
from deployerp.domain.plans import Plan
from deployerp.domain.users import Member, User


@dataclass(frozen=True)
class Beginning:
    """What was made; the key's token exists only here."""

    organization: Organization
    owner: User
    # False for somebody who is in other organizations already, and keeps their password.
    is_new_user: bool
    key: ApiKey
    token: str = field(repr=False)


async def begin(
    session: AsyncSession, *, slug: str, name: str, email: str, password: str, plan: Plan
) -> Beginning:
    """Adds them to the transaction; `email` is in lower case. Raises `Conflict` for a slug in use."""
    password_hash = await hashed(password)
    organization = Organization(slug=slug, name=name, plan=plan)
    try:
        async with session.begin_nested():
            session.add(organization)
    except IntegrityError:
        raise Conflict(
            f"There is an organization {slug} already: choose another slug, or make a key for it with"
            f" `deployerp keys create --organization {slug}`."
        ) from None
    known: User | None = await session.scalar(select(User).where(col(User.email) == email))
    owner = known or User(email=email, name=email.partition("@")[0], password_hash=password_hash)
    session.add(owner)
    await session.flush()
    session.add(Member(organization_id=organization.id, user_id=owner.id, role="owner"))
    key, token = new_api_key(organization.id, "first key", "admin")
    session.add(key)
    await session.flush()
    await append(session, organization.id, _deed(organization))
    return Beginning(organization, owner, known is None, key, token)


def _deed(organization: Organization) -> Deed:
    return Deed(
        actor_type="system",
        actor_id=None,
        action="bootstrap",
        resource_type="organization",
        resource_id=organization.id,
        # There is no request: the entry has an id like those that requests make.
        request_id=uuid4().hex,
        after=snapshot(organization),
    )
