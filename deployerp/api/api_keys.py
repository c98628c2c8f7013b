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
from deployerp.core.fields import CreatedAt, DisplayName, Id, Instant, Name, UpdatedAt
from deployerp.database.base import utc_now
from deployerp.domain.api_keys import ApiKey, new_api_key
from deployerp.domain.permissions import LEVEL_PERMISSIONS, KeyLevel, Level

router = APIRouter(prefix="/v1/api-keys", tags=["api keys"], route_class=Route)


def _to_come(time: datetime) -> datetime:
    if time <= utc_now():
        raise ValueError("must lie in the future")
    return time


class ApiKeyCreate(Body):
    name: Name = Field(examples=["deployments"])
    level: KeyLevel
    expires_at: Annotated[Instant, AfterValidator(_to_come)] | None = Field(
        None,
        description="Time after which the key is invalid (RFC 3339, in the future); null for no expiry.",
        examples=[None, "2027-11-21T12:00:00Z"],
    )


class ApiKeyUpdate(Body):
    name: Name = Field(examples=["deployments"])


class ApiKeyRead(View):
    id: Id
    name: DisplayName = Field(examples=["deployments"])
    level: KeyLevel
    key_id: str = Field(
        description="Public part of the key, which identifies it in logs.", examples=["k7q2m9x4c1v8b5n3"]
    )
    expires_at: datetime | None = Field(
        description="Time after which the key is invalid (RFC 3339, UTC); null for no expiry.",
        examples=[None],
    )
    last_used_at: datetime | None = Field(
        description="Time of the last use (RFC 3339, UTC), accurate to one minute; null if never used.",
        examples=[None],
    )
    revoked_at: datetime | None = Field(
        description="Time of the revocation (RFC 3339, UTC); null if the key is not revoked.", examples=[None]
    )
    created_at: CreatedAt
    updated_at: UpdatedAt


class ApiKeyCreated(ApiKeyRead):
    token: ShownOnce = Field(description="The API key. It is shown once.", examples=["dep_live_..."])


@router.post(
    "",
    status_code=201,
    responses=documented(),
    response_model=Envelope[ApiKeyCreated],
    summary="Create an API key",
)
@needs("manage:api-keys")
async def create_api_key(body: ApiKeyCreate, change: ChangeDep) -> Response:
    """Creates an API key with at most the permissions of the caller. It is shown only in this response."""
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
    "/{id}",
    responses=documented(NotFound, PreconditionFailed),
    response_model=Envelope[ApiKeyRead],
    summary="Update an API key",
)
@needs("manage:api-keys")
async def update_api_key(id: UUID, body: ApiKeyUpdate, change: ChangeDep) -> Response:
    """Renames an API key. Its level and expiry cannot be changed."""
    key = await change.subject(ApiKey, ApiKeyRead, id)
    key.name = body.name
    return await change.respond(ApiKeyRead, key)


@router.delete(
    "/{id}", status_code=204, responses=documented(NotFound, PreconditionFailed), summary="Revoke an API key"
)
@needs("delete:api-keys")
async def revoke_api_key(id: UUID, change: ChangeDep) -> Response:
    """Revokes an API key permanently. It remains in the list, because the audit log refers to it."""
    key = await change.subject(ApiKey, ApiKeyRead, id)
    key.revoked_at = key.revoked_at or utc_now()
    change.forgotten.append(key.id)
    return Response(status_code=204)
