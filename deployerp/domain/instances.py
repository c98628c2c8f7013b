"""One Odoo installation: its own database, filestore, containers, domains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from sqlalchemy import Index, text
from sqlmodel import Field

from deployerp.core.secrets import Sealed, Vault
from deployerp.database.base import PRESENT, Record, one_of, time_field
from deployerp.domain.operations.lifecycles import DESIRED_STATES, INSTANCE

EnvironmentType = Literal["production", "staging", "development"]
ADMIN_LOGIN = "admin"


@dataclass(frozen=True)
class EnvVar:
    """A variable of the instance's environment; a secret one is never shown again."""

    value: str
    secret: bool = False


class Instance(Record, table=True):
    __tablename__ = "instances"
    __table_args__ = (
        one_of("status", INSTANCE.states),
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
            sqlite_where=text("status <> 'deleted'"),
            postgresql_where=text("status <> 'deleted'"),
        ),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    server_id: UUID = Field(foreign_key="servers.id", index=True)
    name: str
    slug: str
    odoo_version: str
    odoo_edition: str
    environment_type: str
    hostname: str
    url: str | None = None
    status: str = INSTANCE.first.from_states[0]
    status_message: str | None = None
    # The user's last start or stop. A server that starts leaves instances stopped that the user has stopped.
    desired_state: str = Field(default="running", sa_column_kwargs={"server_default": "running"})
    sealed_env_vars: str
    sealed_database_password: str
    sealed_master_password: str
    # Gone once it has been read: only Odoo's own hash is left then.
    sealed_admin_password: str | None = None
    # What it runs, from its deploy on: the names, and what names exactly these images to an engine.
    postgres_image: str | None = None
    postgres_digest: str | None = None
    odoo_image: str | None = None
    odoo_digest: str | None = None
    deployed_at: datetime | None = time_field()
    deleted_at: datetime | None = time_field()

    @property
    def has_run(self) -> bool:
        """Whether it was once deployed: no other can be restarted."""
        return self.deployed_at is not None


def seal_env_vars(vault: Vault, variables: Mapping[str, EnvVar]) -> Sealed:
    return vault.seal_mapping({name: asdict(variable) for name, variable in variables.items()})


def open_env_vars(vault: Vault, instance: Instance) -> dict[str, EnvVar]:
    return {name: EnvVar(**each) for name, each in vault.open_mapping(instance.sealed_env_vars).items()}
