"""Providers: connected cloud accounts."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import func, select
from sqlmodel import col

from deployerp.api import changes
from deployerp.api.deps import Caller, ContextDep, SessionDep, require
from deployerp.api.errors import documented, invalid_field
from deployerp.api.pages import PageDep, page_of
from deployerp.api.requests import meta_of
from deployerp.api.schemas import Body, Envelope, ListEnvelope, View
from deployerp.domain.base import utc_now
from deployerp.domain.errors import Conflict, NotFound
from deployerp.domain.lifecycles import DELETED
from deployerp.domain.names import Name
from deployerp.domain.providers import Provider
from deployerp.domain.servers import Server
from deployerp.drivers.cloud import credential_fields, provider_kinds

router = APIRouter(prefix="/v1/providers", tags=["providers"])


class ProviderCreate(Body):
    name: Name
    kind: str = Field(json_schema_extra={"enum": list(provider_kinds())}, examples=["docker"])
    credentials: dict[str, str] = Field(
        default_factory=dict, description="What the kind asks for; kept encrypted."
    )


class ProviderRead(View):
    id: UUID
    name: str
    kind: str
    created_at: datetime
    updated_at: datetime


@router.post("", status_code=201, responses=documented(Conflict))
async def create_provider(
    body: ProviderCreate,
    request: Request,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:providers")],
) -> Envelope[ProviderRead]:
    _check(body)
    provider = Provider(
        organization_id=caller.organization_id,
        name=body.name,
        kind=body.kind,
        sealed_credentials=shared.vault.seal_mapping(body.credentials),
    )
    async with shared.sessions() as session, session.begin():
        await changes.add_unique(
            session, provider, Conflict(f"There is a provider named {body.name} already.")
        )
    return Envelope(data=ProviderRead.model_validate(provider), meta=meta_of(request))


@router.get("", responses=documented())
async def list_providers(
    request: Request, session: SessionDep, page: PageDep, caller: Annotated[Caller, require("read:providers")]
) -> ListEnvelope[ProviderRead]:
    query = select(Provider).where(
        col(Provider.organization_id) == caller.organization_id, col(Provider.deleted_at).is_(None)
    )
    return await page_of(request, session, query, Provider, ProviderRead, page)


@router.get("/{id}", responses=documented(NotFound))
async def get_provider(
    id: UUID, request: Request, session: SessionDep, caller: Annotated[Caller, require("read:providers")]
) -> Envelope[ProviderRead]:
    provider = await changes.owned(session, Provider, id, caller)
    return Envelope(data=ProviderRead.model_validate(provider), meta=meta_of(request))


@router.delete("/{id}", status_code=204, responses=documented(NotFound, Conflict))
async def delete_provider(
    id: UUID, shared: ContextDep, caller: Annotated[Caller, require("delete:providers")]
) -> None:
    """Forgets a provider that has no servers any more."""
    async with shared.sessions() as session, session.begin():
        provider = await changes.owned(session, Provider, id, caller, lock=True)
        servers = await session.scalar(
            select(func.count()).where(col(Server.provider_id) == id, col(Server.status) != DELETED)
        )
        if servers:
            raise Conflict(f"The provider has {servers} servers: delete them first.")
        provider.deleted_at = utc_now()
        # Nothing will need them again.
        provider.sealed_credentials = shared.vault.seal_mapping({})


def _check(body: ProviderCreate) -> None:
    if body.kind not in provider_kinds():
        raise invalid_field("kind", f"must be one of {', '.join(provider_kinds())}")
    fields = {field.name: field for field in credential_fields(body.kind)}
    for name in body.credentials:
        if name not in fields:
            raise invalid_field(f"credentials.{name}", f"{body.kind} does not know it")
    for name, field in fields.items():
        if field.required and not body.credentials.get(name):
            raise invalid_field(f"credentials.{name}", f"{body.kind} needs it")
