"""Providers: connected cloud accounts."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy import func, select
from sqlmodel import col

from deployerp.api.contract.changes import ChangeDep
from deployerp.api.contract.dependencies import context
from deployerp.api.contract.errors import documented, invalid_field
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route, checked_by, needs
from deployerp.api.contract.schemas import Body, Envelope, View
from deployerp.core.errors import (
    Conflict,
    NotFound,
    PreconditionFailed,
    ProviderRefused,
    Unavailable,
    UpstreamError,
)
from deployerp.core.fields import CreatedAt, DisplayName, Id, Name, UpdatedAt
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.domain.operations.lifecycles import DELETED
from deployerp.domain.providers import Provider
from deployerp.domain.queries import CheckCredentials
from deployerp.domain.servers import Server
from deployerp.drivers.clouds.cloud import credential_fields, provider_kinds
from deployerp.drivers.web.urls import check_destination, check_url

router = APIRouter(prefix="/v1/providers", tags=["providers"], route_class=Route)


ProviderKind = Annotated[
    str,
    Field(
        description="Kind of the provider.",
        examples=["docker"],
        json_schema_extra={"enum": list(provider_kinds())},
    ),
]


class ProviderCreate(Body):
    name: Name = Field(description="Display name, unique in the organization.", examples=["Acme"])
    kind: ProviderKind
    credentials: dict[str, Annotated[str, StringConstraints(max_length=20_000)]] = Field(
        default_factory=dict,
        description="Credentials by name; docs/api.md lists those of each kind. They are stored encrypted and"
        " never shown. `docker` has none.",
        examples=[{}],
    )


class ProviderRead(View):
    id: Id
    name: DisplayName
    kind: ProviderKind
    created_at: CreatedAt
    updated_at: UpdatedAt


async def _check_credentials(request: Request) -> None:
    """Raises `ValidationFailed` when the cloud refuses them, `Unavailable` when it cannot be reached."""
    shared = context(request)
    try:
        # Parsed as the endpoint parses it, so that what is checked is what is stored.
        body = ProviderCreate.model_validate(await request.json())
    except ValueError:
        # The endpoint reports what is wrong.
        return
    _check(body, shared.settings)
    if not body.credentials:
        return
    try:
        await shared.queries.ask(CheckCredentials(body.kind, shared.vault.seal_mapping(body.credentials)))
    except ProviderRefused as error:
        raise invalid_field("credentials", f"were refused. {error.message}") from None
    except UpstreamError as error:
        raise Unavailable(f"The credentials could not be checked. {error.message}") from None


@router.post(
    "",
    status_code=201,
    responses=documented(Conflict),
    response_model=Envelope[ProviderRead],
    summary="Create a provider",
)
@needs("manage:providers")
@checked_by(_check_credentials)
async def create_provider(body: ProviderCreate, change: ChangeDep) -> Response:
    """Connects a cloud account. A read-only call to the cloud checks the credentials first."""
    provider = Provider(
        organization_id=change.caller.organization_id,
        name=body.name,
        kind=body.kind,
        sealed_credentials=change.shared.vault.seal_mapping(body.credentials),
    )
    await change.add(provider, Conflict(f"There is a provider named {body.name} already."))
    return await change.respond(ProviderRead, provider, 201)


serve(
    router,
    Provider,
    ProviderRead,
    filters={"kind": Literal[provider_kinds()]},
    search=("name",),
    sorts=("created_at", "name"),
)


@router.delete(
    "/{id}",
    status_code=204,
    responses=documented(NotFound, Conflict, PreconditionFailed),
    summary="Delete a provider",
)
@needs("delete:providers")
async def delete_provider(id: UUID, change: ChangeDep) -> Response:
    """Deletes a provider without servers, and its credentials."""
    provider = await change.subject(Provider, ProviderRead, id)
    servers = await change.session.scalar(
        select(func.count()).where(col(Server.provider_id) == id, col(Server.status) != DELETED)
    )
    if servers:
        raise Conflict(f"The provider has {servers} servers: delete them first.")
    provider.deleted_at = utc_now()
    # Nothing will need them again.
    provider.sealed_credentials = change.shared.vault.seal_mapping({})
    return Response(status_code=204)


def _check(body: ProviderCreate, settings: Settings) -> None:
    if body.kind not in provider_kinds():
        raise invalid_field("kind", f"must be one of {', '.join(provider_kinds())}")
    fields = {field.name: field for field in credential_fields(body.kind)}
    for name in body.credentials:
        if name not in fields:
            known = ", ".join(fields) or "no credentials at all"
            raise invalid_field(f"credentials.{name}", f"is not known to {body.kind}, which takes {known}")
    for name, field in fields.items():
        given = body.credentials.get(name)
        if field.required and not given:
            raise invalid_field(f"credentials.{name}", f"is missing: {body.kind} needs it ({field.meaning})")
        if given and field.is_url:
            _check_url(f"credentials.{name}", given, settings)


def _check_url(field: str, url: str, settings: Settings) -> None:
    try:
        check_destination(check_url(url), settings.allowed_networks)
    except ValueError as error:
        raise invalid_field(field, str(error)) from None
