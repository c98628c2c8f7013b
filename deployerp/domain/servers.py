"""One virtual machine that hosts instances."""

from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import Field as FactField
from sqlalchemy import Index
from sqlmodel import Field

from deployerp.core.fields import DisplayName, StatusMessage
from deployerp.database.base import PRESENT, where
from deployerp.database.search import searched
from deployerp.domain.events.facts import Facts, sample_id
from deployerp.domain.operations.lifecycles import Action, Inclusion, Lifecycle, lifecycle
from deployerp.domain.operations.stateful import Stateful, state_constraints

# What the machine of a server carries in a cloud, with the server's id.
SERVER_TAG = "deployerp.server"


def _instances(action: str | None = None) -> Inclusion:
    return Inclusion("instance", "server_id", action)


SERVER = lifecycle(
    "server",
    (
        "pending",
        "provisioning",
        "running",
        "stopping",
        "stopped",
        "starting",
        "restarting",
        "deleting",
        "deleted",
        "failed",
        "unreachable",
    ),
    Action(
        "provision", ("pending",), "provisioning", "running",
        "manage:servers", "ProvisionServer", "server.created", on_failure="failed",
    ),
    Action(
        "start", ("stopped",), "starting", "running",
        "manage:servers", "StartServer", "server.started", includes=_instances(),
    ),
    Action(
        "stop", ("running", "unreachable"), "stopping", "stopped",
        "manage:servers", "StopServer", "server.stopped", includes=_instances("stop"),
    ),
    Action(
        "restart", ("running", "unreachable", "failed"), "restarting", "running",
        "manage:servers", "RestartServer", "server.restarted", includes=_instances("stop"),
    ),
    Action(
        "delete", ("pending", "running", "stopped", "failed", "unreachable"), "deleting", "deleted",
        "delete:servers", "DeleteServer", "server.deleted", includes=_instances("delete"),
    ),
)  # fmt: skip


ServerAddress = Annotated[
    str | None,
    FactField(
        description="IP address or host name of the server; null until the provider has assigned it.",
        examples=["203.0.113.7"],
    ),
]


class ServerFacts(Facts):
    name: DisplayName
    status: str = FactField(
        description="Lifecycle status.", examples=["running"], json_schema_extra={"enum": [*SERVER.states]}
    )
    status_message: StatusMessage
    address: ServerAddress


class Server(Stateful, table=True):
    __tablename__ = "servers"
    __table_args__ = (
        *state_constraints(SERVER),
        Index("ix_servers_listing", "organization_id", "created_at", "id", **PRESENT),
        Index(
            "uq_servers_organization_id_name",
            "organization_id",
            "name",
            unique=True,
            **where("status <> 'deleted'"),
        ),
        searched("name", "address"),
    )
    lifecycle: ClassVar[Lifecycle] = SERVER
    sample: ClassVar[Facts] = ServerFacts(
        id=sample_id(1), name="one", status="running", status_message=None, address="203.0.113.7"
    )

    provider_id: UUID = Field(foreign_key="providers.id", index=True)
    size: str
    location: str | None = None
    image: str | None = None
    # What the provider calls it, and where it answers; ports differ from 22/80/443 behind a port mapping.
    node_id: str | None = None
    address: str | None = None
    ssh_port: int = 22
    http_port: int = 80
    https_port: int = 443
    host_key: str | None = None
    sealed_host_private_key: str | None = None
    sealed_login_private_key: str | None = None
    engine_version: str | None = None

    @property
    def has_run(self) -> bool:
        """Whether there is a machine that was once ready: no other can be restarted."""
        return self.node_id is not None and self.engine_version is not None
