"""Instances: one Odoo installation each."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator, Field
from sqlalchemy import select
from sqlmodel import col

from deployerp.api import changes
from deployerp.api.deps import Caller, Context, ContextDep, SessionDep, require
from deployerp.api.errors import documented, invalid_field
from deployerp.api.operations import OperationSummary, accepted
from deployerp.api.pages import PageDep, page_of
from deployerp.api.requests import meta_of
from deployerp.api.schemas import Body, Envelope, ListEnvelope, View, enum_of
from deployerp.domain.errors import Conflict, InvalidState, NotFound, OperationInProgress
from deployerp.domain.instances import ADMIN_LOGIN, EnvironmentType, EnvVar, Instance, seal_env_vars
from deployerp.domain.lifecycles import DELETED, INSTANCE
from deployerp.domain.names import EnvName, EnvValue, Name, Slug
from deployerp.domain.operations import Operation
from deployerp.domain.secrets import new_password
from deployerp.domain.servers import Server
from deployerp.domain.settings import Settings

router = APIRouter(prefix="/v1/instances", tags=["instances"])


class EnvVarGiven(Body):
    value: EnvValue
    secret: bool = Field(False, description="Never shown again.")


def _with_value(given: object) -> object:
    """A plain value is short for an object with nothing but it."""
    if isinstance(given, str):
        return {"value": given}
    if not isinstance(given, dict):
        raise ValueError("must be text, or an object with `value` and `secret`")
    return given


EnvVarField = Annotated[
    EnvVarGiven, BeforeValidator(_with_value, json_schema_input_type=EnvValue | EnvVarGiven)
]


class InstanceCreate(Body):
    name: Name
    slug: Slug = Field(description="A DNS label: the first part of the host name.", examples=["acme"])
    server_id: UUID
    odoo_version: str = Field(examples=["19.0"])
    odoo_edition: str = Field("community", examples=["community"])
    environment_type: EnvironmentType = "production"
    env_vars: dict[EnvName, EnvVarField] = Field(default_factory=dict, max_length=100)


class InstanceUpdate(Body):
    name: Name


class InstanceActionRequest(Body):
    action: Literal["start", "stop", "restart"]


class InstanceRead(View):
    id: UUID
    name: str
    slug: str
    server_id: UUID
    odoo_version: str
    odoo_edition: str
    environment_type: EnvironmentType
    hostname: str
    url: str | None
    status: Annotated[str, enum_of(INSTANCE.states)]
    status_message: str | None
    deployed_at: datetime | None
    created_at: datetime
    updated_at: datetime


class InstanceAccepted(InstanceRead):
    operation: OperationSummary


class AdminPassword(View):
    login: str
    password: str


@router.post("", status_code=202, responses=documented(NotFound, Conflict, InvalidState))
async def create_instance(
    body: InstanceCreate,
    request: Request,
    response: Response,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:instances")],
) -> Envelope[InstanceAccepted]:
    """Deploys an Odoo with a database of its own on a server."""
    _check(body, shared.settings)
    async with shared.sessions() as session, session.begin():
        # Locked, so that it is not deleted in the meantime.
        server = await changes.owned(session, Server, body.server_id, caller, lock=True)
        _need_running(server)
        instance = _new_instance(body, caller, shared)
        taken = Conflict(
            f"The host name {instance.hostname} is taken: choose another slug.", details={"field": "slug"}
        )
        operation = await changes.create(session, instance, caller, taken)
    return await _begun(request, response, shared, instance, operation)


@router.get("", responses=documented())
async def list_instances(
    request: Request,
    session: SessionDep,
    page: PageDep,
    caller: Annotated[Caller, require("read:instances")],
) -> ListEnvelope[InstanceRead]:
    query = select(Instance).where(
        col(Instance.organization_id) == caller.organization_id, col(Instance.status) != DELETED
    )
    return await page_of(request, session, query, Instance, InstanceRead, page)


@router.get("/{id}", responses=documented(NotFound))
async def get_instance(
    id: UUID, request: Request, session: SessionDep, caller: Annotated[Caller, require("read:instances")]
) -> Envelope[InstanceRead]:
    instance = await changes.owned(session, Instance, id, caller)
    return Envelope(data=InstanceRead.model_validate(instance), meta=meta_of(request))


@router.patch("/{id}", responses=documented(NotFound))
async def update_instance(
    id: UUID,
    body: InstanceUpdate,
    request: Request,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:instances")],
) -> Envelope[InstanceRead]:
    async with shared.sessions() as session, session.begin():
        instance = await changes.owned(session, Instance, id, caller)
        instance.name = body.name
    return Envelope(data=InstanceRead.model_validate(instance), meta=meta_of(request))


@router.post("/{id}/admin-password", responses=documented(NotFound, Conflict))
async def reveal_admin_password(
    id: UUID, request: Request, shared: ContextDep, caller: Annotated[Caller, require("manage:instances")]
) -> Envelope[AdminPassword]:
    """The generated password of Odoo's administrator: once, then it is forgotten."""
    async with shared.sessions() as session, session.begin():
        instance = await changes.owned(session, Instance, id, caller, lock=True)
        if instance.deployed_at is None:
            raise Conflict("The instance is not deployed yet: wait for its operation.")
        if instance.sealed_admin_password is None:
            raise Conflict("The password has been read before: set a new one in Odoo.")
        password = shared.vault.open(instance.sealed_admin_password)
        instance.sealed_admin_password = None
    return Envelope(data=AdminPassword(login=ADMIN_LOGIN, password=password), meta=meta_of(request))


@router.post(
    "/{id}/actions", status_code=202, responses=documented(NotFound, OperationInProgress, InvalidState)
)
async def act_on_instance(
    id: UUID,
    body: InstanceActionRequest,
    request: Request,
    response: Response,
    shared: ContextDep,
    caller: Annotated[Caller, require("manage:instances")],
) -> Envelope[InstanceAccepted]:
    async with shared.sessions() as session, session.begin():
        instance = await changes.owned(session, Instance, id, caller)
        _need_running(await session.get_one(Server, instance.server_id))
        operation = await changes.act(session, instance, body.action, caller)
    return await _begun(request, response, shared, instance, operation)


router.add_api_route(
    "/{id}/control",
    act_on_instance,
    methods=["POST"],
    status_code=202,
    name="control_instance",
    responses=documented(NotFound, OperationInProgress, InvalidState),
)


@router.delete("/{id}", status_code=202, responses=documented(NotFound, OperationInProgress, InvalidState))
async def delete_instance(
    id: UUID,
    request: Request,
    response: Response,
    shared: ContextDep,
    caller: Annotated[Caller, require("delete:instances")],
    force: Annotated[bool, Query(description="Also when its server does not answer.")] = False,
) -> Envelope[InstanceAccepted]:
    """Removes the instance with its database and files."""
    async with shared.sessions() as session, session.begin():
        instance = await changes.owned(session, Instance, id, caller)
        operation = await changes.act(session, instance, "delete", caller, force=force)
    return await _begun(request, response, shared, instance, operation)


def _check(body: InstanceCreate, settings: Settings) -> None:
    for field, value, allowed in (
        ("odooVersion", body.odoo_version, settings.odoo_versions),
        ("odooEdition", body.odoo_edition, settings.odoo_editions),
    ):
        if value not in allowed:
            raise invalid_field(field, f"must be one of {', '.join(allowed)}")


def _need_running(server: Server) -> None:
    if server.status != "running":
        raise InvalidState(
            f"The server {server.name} is {server.status}: it must be running.",
            details={"status": server.status},
        )


def _new_instance(body: InstanceCreate, caller: Caller, shared: Context) -> Instance:
    seal = shared.vault.seal
    variables = {name: EnvVar(given.value, given.secret) for name, given in body.env_vars.items()}
    return Instance(
        organization_id=caller.organization_id,
        hostname=f"{body.slug}.{shared.settings.instance_domain}",
        sealed_env_vars=seal_env_vars(shared.vault, variables),
        sealed_database_password=seal(new_password()),
        sealed_master_password=seal(new_password()),
        sealed_admin_password=seal(new_password()),
        **body.model_dump(exclude={"env_vars"}),
    )


async def _begun(
    request: Request, response: Response, shared: Context, instance: Instance, operation: Operation
) -> Envelope[InstanceAccepted]:
    await shared.temporal.offer_operation(operation.order)
    told = InstanceRead.model_validate(instance).model_dump()
    return Envelope(
        data=InstanceAccepted(**told, operation=accepted(response, operation)), meta=meta_of(request)
    )
