"""One Odoo installation: its own database, filestore, containers, domains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Literal, get_args
from uuid import UUID

from pydantic import Field as FactField
from sqlalchemy import Index
from sqlmodel import Field

from deployerp.core.fields import DisplayName, ServerId, StatusMessage
from deployerp.core.secrets import Sealed, Vault
from deployerp.database.base import PRESENT, one_of, time_field, where
from deployerp.database.search import searched
from deployerp.domain.events.facts import Facts, sample_id
from deployerp.domain.operations.lifecycles import (
    DESIRED_STATES,
    Action,
    Lifecycle,
    Observation,
    Requirement,
    lifecycle,
)
from deployerp.domain.operations.stateful import Stateful, state_constraints

EnvironmentType = Literal["production", "staging", "development"]
ADMIN_LOGIN = "admin"
InstanceSlug = Annotated[
    str, FactField(description="First part of the host name, a DNS label.", examples=["acme"])
]
OdooVersion = Annotated[str, FactField(description="Odoo version that the instance runs.", examples=["19.0"])]
Environment = Annotated[
    EnvironmentType, FactField(description="Purpose of the instance.", examples=["production"])
]
InstanceUrl = Annotated[
    str | None,
    FactField(
        description="URL of the instance; null until it is deployed.",
        examples=["https://acme.odoo.example.com"],
    ),
]


@dataclass(frozen=True)
class EnvVar:
    """A variable of the instance's environment; a secret one is never shown again."""

    value: str
    secret: bool = False


def _on_server(*states: str) -> Requirement:
    return Requirement("server", "server_id", states)


INSTANCE = lifecycle(
    "instance",
    (
        "pending",
        "deploying",
        "running",
        "stopping",
        "stopped",
        "starting",
        "restarting",
        "updating",
        "restoring",
        "deleting",
        "deleted",
        "failed",
    ),
    Action(
        "deploy", ("pending",), "deploying", "running",
        "manage:instances", "DeployInstance", "instance.deployed", on_failure="failed",
        requires=_on_server("running"), desired_state="running", time_column="deployed_at",
    ),
    Action(
        "start", ("stopped",), "starting", "running",
        "manage:instances", "StartInstance", "instance.started",
        requires=_on_server("running"), desired_state="running",
    ),
    Action(
        "stop", ("running",), "stopping", "stopped",
        "manage:instances", "StopInstance", "instance.stopped",
        requires=_on_server("running"), desired_state="stopped",
    ),
    Action(
        "restart", ("running", "failed"), "restarting", "running",
        "manage:instances", "RestartInstance", "instance.restarted",
        requires=_on_server("running"), desired_state="running",
    ),
    Action(
        "delete", ("pending", "running", "stopped", "failed"), "deleting", "deleted",
        "delete:instances", "DeleteInstance", "instance.deleted",
        requires=_on_server("running", "unreachable", "failed"),
    ),
    observations=(
        Observation(("running", "failed"), "stopped", "instance.stopped"),
        Observation(("stopped", "failed"), "running", "instance.started"),
    ),
)  # fmt: skip


class InstanceFacts(Facts):
    name: DisplayName
    slug: InstanceSlug
    status: str = FactField(
        description="Lifecycle status.", examples=["running"], json_schema_extra={"enum": [*INSTANCE.states]}
    )
    status_message: StatusMessage
    server_id: ServerId
    odoo_version: OdooVersion
    environment_type: Environment
    url: InstanceUrl


class Instance(Stateful, table=True):
    __tablename__ = "instances"
    __table_args__ = (
        *state_constraints(INSTANCE),
        one_of("environment_type", get_args(EnvironmentType)),
        one_of("desired_state", DESIRED_STATES),
        *(
            Index(f"ix_instances_{name}", "organization_id", *columns, "created_at", "id", **PRESENT)
            for name, columns in {
                "listing": (),
                "by_status": ("status",),
                "by_server": ("server_id",),
            }.items()
        ),
        Index(
            "uq_instances_hostname",
            "hostname",
            unique=True,
            **where("status <> 'deleted'"),
        ),
        searched("name", "slug", "hostname"),
    )

    lifecycle: ClassVar[Lifecycle] = INSTANCE
    sample: ClassVar[Facts] = InstanceFacts(
        id=sample_id(2),
        name="Acme",
        slug="acme",
        status="running",
        status_message=None,
        server_id=sample_id(1),
        odoo_version="19.0",
        environment_type="production",
        url="https://acme.odoo.example.com",
    )

    server_id: UUID = Field(foreign_key="servers.id", index=True)
    slug: str
    odoo_version: str
    odoo_edition: str
    environment_type: str
    hostname: str
    url: str | None = None
    # The user's last start or stop. A server that starts leaves instances stopped that the user has stopped.
    desired_state: str = Field(default="running", sa_column_kwargs={"server_default": "running"})
    sealed_env_vars: str
    sealed_database_password: str
    sealed_master_password: str
    # Gone once it has been read: only Odoo's own hash is left then.
    sealed_admin_password: str | None = None
    deployed_at: datetime | None = time_field()

    @property
    def has_run(self) -> bool:
        """Whether it was once deployed: no other can be restarted."""
        return self.deployed_at is not None

    @property
    def workflow_slug(self) -> str:
        return self.slug


def seal_env_vars(vault: Vault, variables: Mapping[str, EnvVar]) -> Sealed:
    return vault.seal_mapping({name: asdict(variable) for name, variable in variables.items()})


def open_env_vars(vault: Vault, instance: Instance) -> dict[str, EnvVar]:
    return {name: EnvVar(**each) for name, each in vault.open_mapping(instance.sealed_env_vars).items()}
