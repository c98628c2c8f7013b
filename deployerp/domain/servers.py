"""One virtual machine that hosts instances."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, text
from sqlmodel import Field

from deployerp.core.fields import slug_of
from deployerp.database.base import PRESENT, Record, one_of, time_field
from deployerp.domain.operations.lifecycles import SERVER

# What the machine of a server carries in a cloud, with the server's id.
SERVER_TAG = "deployerp.server"


class Server(Record, table=True):
    __tablename__ = "servers"
    __table_args__ = (
        one_of("status", SERVER.states),
        Index("ix_servers_listing", "organization_id", "created_at", "id", **PRESENT),
        Index(
            "uq_servers_organization_id_name",
            "organization_id",
            "name",
            unique=True,
            sqlite_where=text("status <> 'deleted'"),
            postgresql_where=text("status <> 'deleted'"),
        ),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    provider_id: UUID = Field(foreign_key="providers.id", index=True)
    name: str
    size: str
    location: str | None = None
    image: str | None = None
    status: str = SERVER.first.from_states[0]
    status_message: str | None = None
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
    deleted_at: datetime | None = time_field()

    @property
    def has_run(self) -> bool:
        """Whether there is a machine that was once ready: no other can be restarted."""
        return self.node_id is not None and self.engine_version is not None

    @property
    def slug(self) -> str:
        """The name as workflow ids can have it; two servers may share it."""
        return slug_of(self.name)
