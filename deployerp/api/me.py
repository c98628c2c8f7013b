"""Who the caller is, for clients that were only given a token."""

from typing import Any
from uuid import UUID

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
from deployerp.domain.api_keys import ApiKey
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import Level, Role
from deployerp.domain.plans import Plan
from deployerp.domain.users import Member, User

router = APIRouter(prefix="/v1/me", tags=["authentication"], route_class=Route)


class OwnOrganization(View):
    id: UUID
    slug: str
    name: str
    plan: Plan


class Me(View):
    """A user has an e-mail address and a role, an API key a level."""

    type: ActorType
    id: UUID
    name: str = Field(examples=["Ada Lovelace"])
    email: str | None = Field(examples=["ada@example.com"])
    role: Role | None = Field(examples=["billing"])
    level: Level | None = Field(examples=[None])
    permissions: list[str] = Field(examples=[["manage:billing", "read:billing", "read:users"]])
    organization: OwnOrganization


# Whoever has proven who they are may ask: there is no permission that all of them have.
@router.get(
    "",
    responses=limited(Unauthorized),
    response_model=Envelope[Me],
    openapi_extra={"security": [{"bearer": []}]},
)
@public
async def get_me(request: Request, shared: ContextDep, caller: CallerDep) -> Response:
    """The user or the key that asks, its organization, and all that it may do."""
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
