"""What proves a person: tries that are counted and slowed down, and the tokens of a sign-in."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from uuid import UUID

from fastapi import Request, Response
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from deployerp.api.access.addresses import address_of, network_of
from deployerp.api.contract.dependencies import Context
from deployerp.api.contract.envelope import respond
from deployerp.api.contract.schemas import View
from deployerp.core.errors import RateLimitExceeded
from deployerp.core.fields import Id, OrganizationSlug
from deployerp.core.secrets import digest
from deployerp.domain import refresh_tokens
from deployerp.domain.audit.log import AuditRecord
from deployerp.domain.permissions import MemberRole
from deployerp.domain.plans import Limits
from deployerp.domain.users import Membership

# Failed tries at one account from one address, and from all of them. What comes after them is slow, and not
# refused: who guesses must not lock the owner out.
_FROM_ONE_ADDRESS = Limits(per_minute=10, per_hour=60)
_FROM_EVERYWHERE = Limits(per_minute=60, per_hour=600)
# Seconds before a try, once too many have failed.
_PAUSE = 1.0
# Tries that are made or wait at a time: at one account from one address, and at most others.
_MOST_OF_ONE = 10
_MOST_AT_ONCE = 100


class OrganizationSummary(View):
    id: Id
    slug: OrganizationSlug


class TokenRead(View):
    access_token: str = Field(
        description="Access token for the header `Authorization: Bearer ...`.", examples=["eyJ..."]
    )
    token_type: Literal["Bearer"] = Field(
        "Bearer", description="Type of the access token.", examples=["Bearer"]
    )
    expires_in: int = Field(description="Lifetime of the access token, in seconds.", examples=[900])
    refresh_token: str = Field(
        description="Refresh token, which can be used once to get a new pair of tokens.",
        examples=["dep_refresh_..."],
    )
    organization: OrganizationSummary = Field(description="Organization that the tokens are valid for.")
    role: MemberRole


@dataclass(frozen=True)
class Tries:
    """What failures of a password count for, and what is remembered of one that was right."""

    of_others: Mapping[str, Limits]
    own: Mapping[str, Limits]
    credential: str


def tries_at(request: Request, shared: Context, account: str, organization: str | None = None) -> Tries:
    """Of an account: an e-mail address, of which the organization tells whose it is, or the id of a user."""
    network = network_of(address_of(request.scope))
    return Tries(
        {
            # Whoever asks: of one who shows a good key the gate counts the organization, which may have no
            # limit.
            f"sign-in:{network}": Limits(shared.settings.address_requests_per_minute, None),
            f"sign-in:{digest(account)}": _FROM_EVERYWHERE,
        },
        {f"sign-in:{digest(f'{account} {network}')}": _FROM_ONE_ADDRESS},
        # With the organization: who has signed in to theirs has not to any other user of the address.
        f"sign-in:{digest(f'{account} {network} {organization or str()}')}",
    )


@asynccontextmanager
async def turn(shared: Context, tries: Tries) -> AsyncIterator[None]:
    """Waits where too many tries have failed; an account at an address is tried by one at a time.

    Where somebody has signed in from before, they do not wait for the failures of others.
    """
    async with AsyncExitStack() as stack:
        for subject in () if shared.guesses.is_good(tries.credential) else tries.of_others:
            await stack.enter_async_context(shared.guesses.turn(subject, pause=_PAUSE, longest=_MOST_AT_ONCE))
        for subject in tries.own:
            await stack.enter_async_context(
                shared.guesses.turn(subject, pause=_PAUSE, longest=_MOST_OF_ONE, alone=True)
            )
        yield


async def count_failure(shared: Context, tries: Tries) -> None:
    """Raises `RateLimitExceeded` where there were too many."""
    await count(shared, {**tries.of_others, **tries.own})


@asynccontextmanager
async def token_turn(request: Request, shared: Context, kind: str) -> AsyncIterator[dict[str, Limits]]:
    """Waits where too many unknown tokens came from the address; gives what one more counts for."""
    subject = f"{kind}:{network_of(address_of(request.scope))}"
    async with shared.guesses.turn(subject, pause=_PAUSE, longest=_MOST_AT_ONCE):
        yield {subject: Limits(shared.settings.address_requests_per_minute, None)}


async def count(shared: Context, failures: Mapping[str, Limits]) -> None:
    """Counts a failure. Raises `RateLimitExceeded` where there were too many."""
    spent = await shared.guesses.count(failures)
    if spent is not None:
        raise RateLimitExceeded(
            f"Too many tries with wrong credentials: try again in {spent.reset} seconds.",
            retry_after=spent.reset,
        )


def issue_tokens(
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


def respond_tokens(request: Request, token: TokenRead) -> Response:
    return respond(request, token.model_dump(by_alias=True), headers={"Cache-Control": "no-store"})


def audit_record_of(request: Request, user_id: UUID, action: str) -> AuditRecord:
    """What the audit log tells of something that a user does to their own account."""
    return AuditRecord(
        actor_type="user",
        actor_id=user_id,
        action=action,
        resource_type="user",
        resource_id=user_id,
        address=address_of(request.scope),
        request_id=request.scope["state"]["request_id"],
    )
