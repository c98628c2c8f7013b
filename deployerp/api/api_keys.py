"""API keys: what programs prove themselves with."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field

from deployerp.api.contract.changes import ChangeDep
from deployerp.api.contract.errors import documented
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route, needs
from deployerp.api.contract.schemas import Body, Envelope, ShownOnce, View
from deployerp.core.errors import NotFound, PreconditionFailed
from deployerp.core.fields import Instant, Name
from deployerp.database.base import utc_now
from deployerp.domain.api_keys import ApiKey, new_api_key
from deployerp.domain.permissions import LEVEL_PERMISSIONS, Level

router = APIRouter(prefix="/v1/api-keys", tags=["api keys"], route_class=Route)


def _to_come(time: datetime) -> datetime:
    if time <= utc_now():
        raise ValueError("must lie in the future")
    return time


class ApiKeyCreate(Body):
    name: Name = Field(examples=["deployments"])
    level: Level = Field(description="`read`, `write` (and read), `delete` (and write), or `admin` (all).")
    expires_at: Annotated[Instant, AfterValidator(_to_come)] | None = None


class ApiKeyUpdate(Body):
    name: Name = Field(examples=["deployments"])


class ApiKeyRead(View):
    id: UUID
    name: str
    level: Level
    key_id: str = Field(
        description="The public part of the key, to find it by.", examples=["k7q2m9x4c1v8b5n3"]
    )
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="Exact to a minute.")
    revoked_at: datetime | None
    created_at: datetime
    updated_at: datetime


class ApiKeyCreated(ApiKeyRead):
    token: ShownOnce = Field(description="The key itself; shown only now.", examples=["dep_live_..."])


@router.post("", status_code=201, responses=documented(), response_model=Envelope[ApiKeyCreated])
@needs("manage:api-keys")
async def create_api_key(body: ApiKeyCreate, change: ChangeDep) -> Response:
    """Makes a key that may do at most what its maker may; it is shown only now."""
    permissions = LEVEL_PERMISSIONS[body.level]
    change.caller.cover(permissions, f"level `{body.level}`", "choose a lower one")
    key, token = new_api_key(change.caller.organization_id, body.name, body.level, body.expires_at)
    await change.add(key)
    return await change.respond(ApiKeyRead, key, 201, token=token)


serve(
    router,
    ApiKey,
    ApiKeyRead,
    filters={"level": Level},
    search=("name", "key_id"),
    sorts=("created_at", "name"),
)


@router.patch(
    "/{id}", responses=documented(NotFound, PreconditionFailed), response_model=Envelope[ApiKeyRead]
)
@needs("manage:api-keys")
async def update_api_key(id: UUID, body: ApiKeyUpdate, change: ChangeDep) -> Response:
    """Renames a key; its level and its expiry are for good."""
    key = await change.subject(ApiKey, ApiKeyRead, id)
    key.name = body.name
    return await change.respond(ApiKeyRead, key)


@router.delete("/{id}", status_code=204, responses=documented(NotFound, PreconditionFailed))
@needs("delete:api-keys")
async def revoke_api_key(id: UUID, change: ChangeDep) -> Response:
    """Ends a key for good, also the one that asks; it stays listed, because the audit log names it."""
    key = await change.subject(ApiKey, ApiKeyRead, id)
    key.revoked_at = key.revoked_at or utc_now()
    change.forgotten.append(key.id)
    return Response(status_code=204)
