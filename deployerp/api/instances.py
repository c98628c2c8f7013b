"""Instances: one Odoo installation each."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BeforeValidator, Field, StrictBool

from deployerp.api.contract import ordering
from deployerp.api.contract.changes import Change, ChangeDep
from deployerp.api.contract.errors import documented, invalid_field
from deployerp.api.contract.lists import Text
from deployerp.api.contract.ordering import OperationSummary
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route, needs
from deployerp.api.contract.schemas import Body, Envelope, Health, ShownOnce, View, enum_of
from deployerp.core.errors import (
    Conflict,
    InvalidState,
    NotFound,
    OperationInProgress,
    PreconditionFailed,
)
from deployerp.core.fields import (
    CreatedAt,
    DisplayName,
    EnvName,
    EnvValue,
    Id,
    Name,
    ServerId,
    Slug,
    StatusMessage,
    UpdatedAt,
    check_hostname,
)
from deployerp.core.secrets import new_password
from deployerp.core.settings import Settings
from deployerp.database.statements import put
from deployerp.domain.instances import (
    ADMIN_LOGIN,
    INSTANCE,
    Environment,
    EnvironmentType,
    EnvVar,
    Instance,
    InstanceSlug,
    InstanceUrl,
    OdooVersion,
    seal_env_vars,
)
from deployerp.domain.releases import Release
from deployerp.domain.servers import Server

router = APIRouter(prefix="/v1/instances", tags=["instances"], route_class=Route)


class EnvVarGiven(Body):
    value: EnvValue = Field(
        description="Value of the environment variable, at most 32,768 characters.", examples=["de_DE.UTF-8"]
    )
    secret: StrictBool = Field(
        False, description="Whether the value is a secret, which is never shown again.", examples=[False]
    )


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


OdooEdition = Annotated[str, Field(description="Odoo edition.", examples=["community"])]


class InstanceCreate(Body):
    name: Name
    slug: Slug = Field(
        description="First part of the host name: a DNS label of at most 63 characters.", examples=["acme"]
    )
    server_id: ServerId
    odoo_version: OdooVersion
    odoo_edition: OdooEdition = "community"
    environment_type: Environment = "production"
    env_vars: dict[EnvName, EnvVarField] = Field(
        default_factory=dict,
        max_length=100,
        description="Environment variables of the Odoo container by name, at most 100. A value is a text, or"
        " an object that marks it as a secret.",
        examples=[{"LANG": "de_DE.UTF-8"}],
    )


class InstanceUpdate(Body):
    name: Name


class InstanceActionRequest(Body):
    action: Literal["start", "stop", "restart"] = Field(description="Action to run.", examples=["restart"])


class InstanceRead(View):
    id: Id
    name: DisplayName
    slug: InstanceSlug
    server_id: ServerId
    odoo_version: OdooVersion
    odoo_edition: OdooEdition
    environment_type: Environment
    hostname: str = Field(
        description="Host name: the slug and the domain of the control plane.",
        examples=["acme.odoo.example.com"],
    )
    url: InstanceUrl
    status: Annotated[str, enum_of(INSTANCE.states)] = Field(
        description="Lifecycle status.", examples=["pending"]
    )
    status_message: StatusMessage
    health: Health
    desired_state: str = Field(
        description="State that was last requested, `running` or `stopped`. When a server starts, its"
        " instances that should be running are started.",
        examples=["running"],
    )
    deployed_at: datetime | None = Field(
        description="Time of the first deployment (RFC 3339, UTC); null before it.", examples=[None]
    )
    created_at: CreatedAt
    updated_at: UpdatedAt


class InstanceAccepted(InstanceRead):
    operation: OperationSummary = Field(
        description="Operation that runs the action.", json_schema_extra=ordering.first_of(INSTANCE)
    )


class AdminPassword(View):
    login: str = Field(description="Login name of the Odoo administrator.", examples=["admin"])
    password: ShownOnce = Field(
        description="Generated password. It is shown once and then deleted.", examples=["kX3v..."]
    )


@router.post(
    "",
    status_code=202,
    responses=documented(NotFound, Conflict, InvalidState),
    response_model=Envelope[InstanceAccepted],
    summary="Create an instance",
)
@needs("manage:instances")
async def create_instance(body: InstanceCreate, change: ChangeDep) -> Response:
    """Deploys an Odoo instance with its own database on a server.

    The response is returned at once; the operation shows the progress of the deployment.
    """
    _check(body, change.shared.settings)
    _check_hostname(body, change.shared.settings)
    # Locked, so that it is not deleted in the meantime.
    await change.hold(Server, body.server_id)
    instance = _new_instance(body, change)
    taken = Conflict(
        f"The host name {instance.hostname} is taken: choose another slug.", details={"field": "slug"}
    )
    operation = await ordering.create(change, instance, taken)
    await put(change.session, Release(organization_id=instance.organization_id, instance_id=instance.id))
    return await ordering.respond_with_resource(change, operation, InstanceRead, instance)


serve(
    router,
    Instance,
    InstanceRead,
    filters={
        "server_id": UUID,
        "status": Literal[INSTANCE.states],
        "environment_type": EnvironmentType,
        "odoo_version": Text,
    },
    search=("name", "slug", "hostname"),
    sorts=("created_at", "name"),
)


@router.patch(
    "/{id}",
    responses=documented(NotFound, PreconditionFailed),
    response_model=Envelope[InstanceRead],
    summary="Update an instance",
)
@needs("manage:instances")
async def update_instance(id: UUID, body: InstanceUpdate, change: ChangeDep) -> Response:
    """Changes the display name of an instance."""
    instance = await change.subject(Instance, InstanceRead, id)
    instance.name = body.name
    return await change.respond(InstanceRead, instance)


@router.post(
    "/{id}/admin-password",
    responses=documented(NotFound, Conflict),
    response_model=Envelope[AdminPassword],
    summary="Reveal the admin password",
)
@needs("manage:instances")
async def reveal_admin_password(id: UUID, change: ChangeDep) -> Response:
    """Returns the generated password of the Odoo administrator once, and then deletes it."""
    instance = await change.subject(Instance, InstanceRead, id)
    if instance.deployed_at is None:
        raise Conflict("The instance is not deployed yet: wait for its operation.")
    if instance.sealed_admin_password is None:
        raise Conflict("The password has been read before: set a new one in Odoo.")
    password = change.shared.vault.open(instance.sealed_admin_password)
    instance.sealed_admin_password = None
    return change.answer({"login": ADMIN_LOGIN, "password": password})


@router.post(
    "/{id}/actions",
    status_code=202,
    responses=documented(NotFound, OperationInProgress, InvalidState),
    response_model=Envelope[InstanceAccepted],
    summary="Run an instance action",
)
@needs("manage:instances")
async def act_on_instance(id: UUID, body: InstanceActionRequest, change: ChangeDep) -> Response:
    """Starts, stops or restarts an instance."""
    instance = await change.subject(Instance, InstanceRead, id)
    operation = await ordering.act(change, instance, body.action)
    return await ordering.respond_with_resource(change, operation, InstanceRead, instance)


router.add_api_route(
    "/{id}/control",
    act_on_instance,
    methods=["POST"],
    status_code=202,
    name="control_instance",
    summary="Run an instance action (alias)",
    description="Alias of `POST /v1/instances/{id}/actions`: starts, stops or restarts an instance.",
    responses=documented(NotFound, OperationInProgress, InvalidState),
    response_model=Envelope[InstanceAccepted],
)


@router.delete(
    "/{id}",
    status_code=202,
    responses=documented(NotFound, OperationInProgress, InvalidState, PreconditionFailed),
    response_model=Envelope[InstanceAccepted],
    summary="Delete an instance",
)
@needs("delete:instances")
async def delete_instance(
    id: UUID,
    change: ChangeDep,
    force: Annotated[
        bool,
        Query(description="Delete also while another operation runs, or if the server does not respond."),
    ] = False,
) -> Response:
    """Deletes an instance with its database and files."""
    instance = await change.subject(Instance, InstanceRead, id)
    operation = await ordering.act(change, instance, "delete", force=force)
    return await ordering.respond_with_resource(change, operation, InstanceRead, instance)


def _check(body: InstanceCreate, settings: Settings) -> None:
    for field, value, allowed in (
        ("odooVersion", body.odoo_version, settings.odoo_versions),
        ("odooEdition", body.odoo_edition, settings.odoo_editions),
    ):
        if value not in allowed:
            raise invalid_field(field, f"must be one of {', '.join(allowed)}")


def _check_hostname(body: InstanceCreate, settings: Settings) -> None:
    try:
        check_hostname(f"{body.slug}.{settings.instance_domain}")
    except ValueError as error:
        raise invalid_field("slug", str(error)) from None


def _new_instance(body: InstanceCreate, change: Change) -> Instance:
    vault = change.shared.vault
    variables = {name: EnvVar(given.value, given.secret) for name, given in body.env_vars.items()}
    return Instance(
        organization_id=change.caller.organization_id,
        hostname=f"{body.slug}.{change.shared.settings.instance_domain}",
        sealed_env_vars=seal_env_vars(vault, variables),
        sealed_database_password=vault.seal(new_password()),
        sealed_master_password=vault.seal(new_password()),
        sealed_admin_password=vault.seal(new_password()),
        **body.model_dump(exclude={"env_vars"}),
    )
