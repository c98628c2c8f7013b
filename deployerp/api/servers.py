"""Servers: machines that host instances."""

from datetime import datetime
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
from deployerp.api.contract.schemas import Body, Envelope, View, enum_of
from deployerp.core.errors import (
    Conflict,
    InvalidState,
    NotFound,
    OperationInProgress,
    PreconditionFailed,
)
from deployerp.core.fields import Name, Token
from deployerp.domain.instances import Instance
from deployerp.domain.operations.lifecycles import DELETED, HEALTHS
from deployerp.domain.providers import Provider
from deployerp.domain.servers import SERVER, Server

router = APIRouter(prefix="/v1/servers", tags=["servers"], route_class=Route)


class ServerCreate(Body):
    name: Name
    provider_id: UUID
    size: Token
    location: Token | None = None
    image: Token | None = None


class ServerActionRequest(Body):
    action: Literal["start", "stop", "restart"]


class ServerRead(View):
    id: UUID
    name: str
    provider_id: UUID
    size: str
    location: str | None
    image: str | None
    status: Annotated[str, enum_of(SERVER.states)]
    status_message: str | None
    health: Annotated[str, enum_of(HEALTHS)] = Field(
        description="What was last seen of it, beside its status.", examples=["healthy"]
    )
    address: str | None
    ssh_port: int
    http_port: int
    https_port: int
    host_key: str | None
    engine_version: str | None
    created_at: datetime
    updated_at: datetime


class ServerAccepted(ServerRead):
    operation: OperationSummary = Field(json_schema_extra=ordering.first_of(SERVER))


@router.post(
    "", status_code=202, responses=documented(NotFound, Conflict), response_model=Envelope[ServerAccepted]
)
@needs("manage:servers")
async def create_server(body: ServerCreate, change: ChangeDep) -> Response:
    """Provisions a machine and makes it ready for instances."""
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
)
@needs("manage:servers")
async def act_on_server(id: UUID, body: ServerActionRequest, change: ChangeDep) -> Response:
    """Starts, stops or restarts the machine, and with it its instances.

    Instances that run are stopped with their server; those whose `desiredState` is `running` start with it.
    """
    server = await change.subject(Server, ServerRead, id)
    operation = await ordering.act(change, server, body.action)
    return await ordering.respond_with_resource(change, operation, ServerRead, server)


@router.delete(
    "/{id}",
    status_code=202,
    responses=documented(NotFound, Conflict, OperationInProgress, InvalidState, PreconditionFailed),
    response_model=Envelope[ServerAccepted],
)
@needs("delete:servers")
async def delete_server(
    id: UUID,
    change: ChangeDep,
    force: Annotated[
        bool, Query(description="Also with instances on it, also when it or its provider does not answer.")
    ] = False,
) -> Response:
    """Destroys the machine; with `force`, also with its instances, and forgets what cannot be reached."""
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
