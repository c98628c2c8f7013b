"""What an instance is made of on its server: names, labels and the specifications of its containers."""

import hashlib
from dataclasses import dataclass

from deployerp.domain.instances import Instance
from deployerp.drivers import odoo as rules
from deployerp.drivers.containers import ContainerSpec

INSTANCE_LABEL = "deployerp.instance"
PREPARED_LABEL = "deployerp.prepared"
ROLE_LABEL = "deployerp.role"
PGDATA = "/var/lib/postgresql/data"
# Until releases exist, there is one colour.
COLOUR = "blue"


@dataclass(frozen=True)
class Volumes:
    """The two volumes that hold all that an instance knows."""

    pgdata: str
    filestore: str


@dataclass(frozen=True)
class Images:
    postgres: str
    odoo: str


@dataclass(frozen=True)
class Parts:
    """One Odoo with its PostgreSQL: an instance, or the preparation of a database to copy."""

    prefix: str
    labels: dict[str, str]
    images: Images
    volumes: Volumes

    @property
    def network(self) -> str:
        return self.prefix

    @property
    def postgres(self) -> str:
        return f"{self.prefix}-postgres"

    @property
    def odoo(self) -> str:
        return f"{self.prefix}-odoo-{COLOUR}"

    def postgres_spec(self, environment: dict[str, str] | None = None) -> ContainerSpec:
        """`environment` is what the image needs to make a new cluster; a copied one needs nothing."""
        return ContainerSpec(
            name=self.postgres,
            image=self.images.postgres,
            labels=self.labels | {ROLE_LABEL: "postgres"},
            environment=environment or {},
            network=self.network,
            aliases=[rules.POSTGRES_ALIAS],
            volumes={self.volumes.pgdata: PGDATA},
            restart_policy="unless-stopped",
            # A smart shutdown waits for its clients for as long as it takes to save a large cache.
            stop_timeout=60,
        )

    def odoo_spec(
        self,
        configuration: rules.Configuration,
        environment: dict[str, str] | None = None,
        command: tuple[str, ...] = rules.SERVE,
    ) -> ContainerSpec:
        return ContainerSpec(
            name=self.odoo,
            image=self.images.odoo,
            labels=self.labels | {ROLE_LABEL: "odoo"},
            entrypoint=list(rules.ENTRYPOINT),
            command=list(command),
            environment=environment or {},
            network=self.network,
            volumes={self.volumes.filestore: rules.DATA_DIR},
            files={rules.CONFIG_FILE: configuration.render()},
            restart_policy="unless-stopped",
            memory_bytes=configuration.capacity.memory_bytes,
            stop_timeout=30,
        )


def instance_labels(instance_id: object) -> dict[str, str]:
    return {INSTANCE_LABEL: str(instance_id)}


def parts_of(instance: Instance, images: Images) -> Parts:
    prefix = f"deployerp-{instance.id}"
    return Parts(
        prefix=prefix,
        labels=instance_labels(instance.id),
        images=images,
        volumes=Volumes(f"{prefix}-pgdata", f"{prefix}-filestore"),
    )


def preparation_of(instance: Instance, images: Images, image_ids: tuple[str, ...]) -> tuple[Parts, str]:
    """The parts that make a database to copy, and the volume whose being there says that it is complete.

    The containers are the instance's, so that they go with it when its deploy fails; the volumes stay
    for the next instance of the same images and modules.
    """
    content = "\n".join((*image_ids, *rules.MODULES))
    prefix = f"deployerp-prepared-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    parts = Parts(
        prefix=f"{prefix}-{instance.id}",
        labels=instance_labels(instance.id) | {PREPARED_LABEL: prefix},
        images=images,
        volumes=Volumes(f"{prefix}-pgdata", f"{prefix}-filestore"),
    )
    return parts, f"{prefix}-complete"
