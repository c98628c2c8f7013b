"""Servers: machines that host instances."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field
from sqlalchemy import func, select
from sqlmodel import col

from deployerp.api.contract import ordering
from deployerp.api.contract.changes import Change, ChangeDep
from deployerp.api.contract.errors import documented
from deployerp.api.contract.ordering import OperationSummary
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route, needs
from deployerp.api.contract.schemas import Body, Envelope, Health, View, enum_of
from deployerp.core.errors import (
    Conflict,
    InvalidState,
    NotFound,
    OperationInProgress,
    PreconditionFailed,
)
from deployerp.core.fields import CreatedAt, DisplayName, Id, Name, StatusMessage, Token, UpdatedAt
from deployerp.domain.instances import Instance
from deployerp.domain.operations.lifecycles import DELETED
from deployerp.domain.providers import Provider
from deployerp.domain.servers import SERVER, Server, ServerAddress

router = APIRouter(prefix="/v1/servers", tags=["servers"], route_class=Route)


ProviderId = Annotated[
    UUID,
    Field(
        description="ID of the provider that runs the machine.",
        examples=["01932a7c-8f4e-7c3a-9b2d-000000000006"],
    ),
]


class ServerCreate(Body):
    name: Name = Field(description="Display name, unique in the organization.", examples=["production-1"])
    provider_id: ProviderId
    size: Token = Field(description="Machine size, as the provider names it.", examples=["small"])
    location: Token | None = Field(
        None,
        description="Region or zone, as the provider names it; null for the provider's default.",
        examples=[None, "fra1"],
    )
    image: Token | None = Field(
        None,
        description="Operating system image, as the provider names it; null for the default.",
        examples=[None, "debian-12-x64"],
    )


class ServerActionRequest(Body):
    action: Literal["start", "stop", "restart"] = Field(description="Action to run.", examples=["restart"])


class ServerRead(View):
    id: Id
    name: DisplayName
    provider_id: ProviderId
    size: str = Field(description="Machine size, as the provider names it.", examples=["small"])
    location: str | None = Field(
        description="Region or zone, as the provider names it; null for the provider's default.",
        examples=[None],
    )
    image: str | None = Field(
        description="Operating system image, as the provider names it; null for the default.",
        examples=[None],
    )
    status: Annotated[str, enum_of(SERVER.states)] = Field(
        description="Lifecycle status.", examples=["pending"]
    )
    status_message: StatusMessage
    health: Health
    address: ServerAddress
    ssh_port: int = Field(description="TCP port of SSH.", examples=[22])
    http_port: int = Field(description="TCP port of HTTP.", examples=[80])
    https_port: int = Field(description="TCP port of HTTPS.", examples=[443])
    host_key: str | None = Field(
        description="Public SSH host key, in OpenSSH format; null until it is generated.",
        examples=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExam"],
    )
    engine_version: str | None = Field(
        description="Version of the Docker engine; null until the server is ready.", examples=["20.10.24"]
    )
    created_at: CreatedAt
    updated_at: UpdatedAt


class ServerAccepted(ServerRead):
    operation: OperationSummary = Field(
        description="Operation that runs the action.", json_schema_extra=ordering.first_of(SERVER)
    )


@router.post(
    "",
    status_code=202,
    responses=documented(NotFound, Conflict),
    response_model=Envelope[ServerAccepted],
    summary="Create a server",
)
@needs("manage:servers")
async def create_server(body: ServerCreate, change: ChangeDep) -> Response:
    """Creates a machine at the provider and prepares it to host instances."""
    # Locked, so that it is not deleted in the meantime.
    await change.hold(Provider, body.provider_id)
    server = Server(organization_id=change.caller.organization_id, **body.model_dump())
    taken = Conflict(f"There is a server named {body.name} already.", details={"field": "name"})
    operation = await ordering.create(change, server, taken)
    return await ordering.respond_with_resource(change, operation, ServerRead, server)


serve(
    router,
    Server,
    ServerRead,
    filters={"status": Literal[SERVER.states], "provider_id": UUID},
    search=("name", "address"),
    sorts=("created_at", "name"),
)


@router.post(
    "/{id}/actions",
    status_code=202,
    responses=documented(NotFound, OperationInProgress, InvalidState),
    response_model=Envelope[ServerAccepted],
    summary="Run a server action",
)
@needs("manage:servers")
async def act_on_server(id: UUID, body: ServerActionRequest, change: ChangeDep) -> Response:
    """Starts, stops or restarts a server and its instances.

    Running instances are stopped with their server. Instances whose `desiredState` is `running` are started
    with it.
    """
    server = await change.subject(Server, ServerRead, id)
    operation = await ordering.act(change, server, body.action)
    return await ordering.respond_with_resource(change, operation, ServerRead, server)


@router.delete(
    "/{id}",
    status_code=202,
    responses=documented(NotFound, Conflict, OperationInProgress, InvalidState, PreconditionFailed),
    response_model=Envelope[ServerAccepted],
    summary="Delete a server",
)
@needs("delete:servers")
async def delete_server(
    id: UUID,
    change: ChangeDep,
    force: Annotated[
        bool,
        Query(description="Delete also its instances, or if the server or its provider does not respond."),
    ] = False,
) -> Response:
    """Deletes a server and its machine. With `force`, also its instances, and even if it does not respond."""
    server = await change.subject(Server, ServerRead, id)
    if not force:
        await _need_empty(change, server)
    operation = await ordering.act(change, server, "delete", force=force)
    return await ordering.respond_with_resource(change, operation, ServerRead, server)


async def _need_empty(change: Change, server: Server) -> None:
    instances = await change.session.scalar(
        select(func.count()).where(col(Instance.server_id) == server.id, col(Instance.status) != DELETED)
    )
    if instances:
        raise Conflict(
            f"The server holds {instances} instances: delete them first, or add force=true.",
            details={"instances": instances},
        )
