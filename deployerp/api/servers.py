"""Servers: machines that host instances."""

from contextlib import suppress
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select
from sqlmodel import col

from deployerp.api import changes
from deployerp.api.deps import Caller, Context, ContextDep, SessionDep, require
from deployerp.api.errors import documented
from deployerp.api.operations import OperationSummary, accepted
from deployerp.api.pages import PageDep, page_of
from deployerp.api.requests import meta_of
from deployerp.api.schemas import Body, Envelope, ListEnvelope, View, enum_of
from deployerp.domain.errors import Conflict, InvalidState, NotFound, OperationInProgress, Unavailable
from deployerp.domain.instances import Instance
from deployerp.domain.lifecycles import DELETED, SERVER
from deployerp.domain.names import Name, Token
from deployerp.domain.operations import Operation
from deployerp.domain.providers import Provider
from deployerp.domain.servers import Server

router = APIRouter(prefix="/v1/servers", tags=["servers"])


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
    address: str | None
    ssh_port: int
    http_port: int
    https_port: int
    host_key: str | None
    engine_version: str | None
    created_at: datetime
    updated_at: datetime


class ServerAccepted(ServerRead):
    operation: OperationSummary


@router.post("", status_code=202, responses=documented(NotFound, Conflict))
async def create_server(
    body: ServerCreate,
    request: Request,
    response: Response,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:servers")],
) -> Envelope[ServerAccepted]:
    """Provisions a machine and makes it ready for instances."""
    async with shared.sessions() as session, session.begin():
        # Locked, so that it is not deleted in the meantime.
        await changes.owned(session, Provider, body.provider_id, caller, lock=True)
        server = Server(organization_id=caller.organization_id, **body.model_dump())
        taken = Conflict(f"There is a server named {body.name} already.", details={"field": "name"})
        operation = await changes.create(session, server, caller, taken)
    return await _begun(request, response, shared, server, operation)


@router.get("", responses=documented())
async def list_servers(
    request: Request,
    session: SessionDep,
    page: PageDep,
    caller: Annotated[Caller, require("read:servers")],
) -> ListEnvelope[ServerRead]:
    query = select(Server).where(
        col(Server.organization_id) == caller.organization_id, col(Server.status) != DELETED
    )
    return await page_of(request, session, query, Server, ServerRead, page)


@router.get("/{id}", responses=documented(NotFound))
async def get_server(
    id: UUID, request: Request, session: SessionDep, caller: Annotated[Caller, require("read:servers")]
) -> Envelope[ServerRead]:
    server = await changes.owned(session, Server, id, caller)
    return Envelope(data=ServerRead.model_validate(server), meta=meta_of(request))


@router.post(
    "/{id}/actions", status_code=202, responses=documented(NotFound, OperationInProgress, InvalidState)
)
async def act_on_server(
    id: UUID,
    body: ServerActionRequest,
    request: Request,
    response: Response,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:servers")],
) -> Envelope[ServerAccepted]:
    async with shared.sessions() as session, session.begin():
        server = await changes.owned(session, Server, id, caller)
        operation = await changes.act(session, server, body.action, caller)
    return await _begun(request, response, shared, server, operation)


@router.delete(
    "/{id}", status_code=202, responses=documented(NotFound, Conflict, OperationInProgress, InvalidState)
)
async def delete_server(
    id: UUID,
    request: Request,
    response: Response,
    shared: ContextDep,
    caller: Annotated[Caller, require("delete:servers")],
    force: Annotated[
        bool, Query(description="Also with instances on it, also when it or its provider does not answer.")
    ] = False,
) -> Envelope[ServerAccepted]:
    """Destroys the machine; with `force`, also with its instances, and forgets what cannot be reached."""
    async with shared.sessions() as session, session.begin():
        server = await changes.owned(session, Server, id, caller, lock=True)
        superseded = await changes.supersede(session, server) if force else None
        if not force:
            instances = await session.scalar(
                select(func.count()).where(col(Instance.server_id) == id, col(Instance.status) != DELETED)
            )
            if instances:
                raise Conflict(
                    f"The server holds {instances} instances: delete them first, or add force=true.",
                    details={"instances": instances},
                )
        operation = await changes.act(session, server, "delete", caller, force=force)
    await _end(shared, superseded)
    return await _begun(request, response, shared, server, operation)


async def _end(shared: Context, superseded: Operation | None) -> None:
    if superseded is None:
        return
    # Where Temporal does not answer, its workflow ends by itself: a closed operation is not claimed again.
    with suppress(Unavailable):
        await shared.temporal.terminate(superseded.order.workflow_id, "The server was deleted by force.")


async def _begun(
    request: Request, response: Response, shared: Context, server: Server, operation: Operation
) -> Envelope[ServerAccepted]:
    await shared.temporal.offer_operation(operation.order)
    told = ServerRead.model_validate(server).model_dump()
    return Envelope(
        data=ServerAccepted(**told, operation=accepted(response, operation)), meta=meta_of(request)
    )
