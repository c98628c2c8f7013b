"""Who the caller is, for clients that were only given a token."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import Select, select
from sqlmodel import col

from deployerp.api.access.callers import ActorType, Caller
from deployerp.api.contract.dependencies import CallerDep, ContextDep
from deployerp.api.contract.envelope import respond
from deployerp.api.contract.errors import limited
from deployerp.api.contract.routes import Route, public
from deployerp.api.contract.schemas import Envelope, View
from deployerp.core.errors import Unauthorized
from deployerp.core.fields import ActorId, DisplayName, Id, OrganizationSlug
from deployerp.domain.api_keys import ApiKey
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import Level, Role
from deployerp.domain.plans import Plan
from deployerp.domain.users import Member, User

router = APIRouter(prefix="/v1/me", tags=["authentication"], route_class=Route)


class OwnOrganization(View):
    id: Id
    slug: OrganizationSlug
    name: DisplayName
    plan: Plan = Field(description="Plan, which sets the rate limits.", examples=["starter"])


class Me(View):
    """The caller: a user with an e-mail address and a role, or an API key with a level."""

    type: ActorType = Field(description="Type of the caller.", examples=["user"])
    id: ActorId
    name: DisplayName = Field(examples=["Ada Lovelace"])
    email: str | None = Field(
        description="E-mail address of the user; null for an API key.", examples=["ada@example.com"]
    )
    role: Role | None = Field(
        description="Role of the user in the organization; null for an API key.", examples=["billing"]
    )
    level: Level | None = Field(description="Access level of the API key; null for a user.", examples=[None])
    permissions: list[str] = Field(
        description="Permissions of the caller, sorted.",
        examples=[["manage:billing", "read:billing", "read:users"]],
    )
    organization: OwnOrganization = Field(description="Organization of the caller.")


# Whoever has proven who they are may ask: there is no permission that all of them have.
@router.get(
    "",
    responses=limited(Unauthorized),
    response_model=Envelope[Me],
    openapi_extra={"security": [{"bearer": []}]},
    summary="Get the caller",
)
@public
async def get_me(request: Request, shared: ContextDep, caller: CallerDep) -> Response:
    """Returns the user or API key of the request, its organization and its permissions."""
    async with shared.sessions() as session:
        found = (await session.execute(_query(caller))).mappings().one_or_none()
        organization = await session.get(Organization, caller.organization_id)
    if found is None or organization is None:
        raise Unauthorized("Your access has just ended: sign in again.")
    me = Me(
        type=caller.actor_type,
        id=caller.actor_id,
        permissions=sorted(caller.permissions),
        organization=OwnOrganization.model_validate(organization),
        **{"email": None, "role": None, "level": None, **found},
    )
    return respond(request, me.model_dump(by_alias=True))


def _query(caller: Caller) -> Select[*tuple[Any, ...]]:
    if caller.actor_type == "api_key":
        return select(col(ApiKey.name), col(ApiKey.level)).where(col(ApiKey.id) == caller.actor_id)
    return (
        select(col(User.name), col(User.email), col(Member.role))
        .join(Member, col(Member.user_id) == col(User.id))
        .where(col(User.id) == caller.actor_id, col(Member.organization_id) == caller.organization_id)
    )
