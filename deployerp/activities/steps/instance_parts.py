"""What an instance is made of on its server: names, labels and the specifications of its containers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from deployerp.domain.instances import Instance
from deployerp.domain.releases import COLOURS, Release
from deployerp.drivers.engine.containers import ContainerSpec, ContainerState
from deployerp.drivers.odoo import odoo as rules

INSTANCE_LABEL = "deployerp.instance"
PREPARED_LABEL = "deployerp.prepared"
RELEASE_LABEL = "deployerp.release"
ROLE_LABEL = "deployerp.role"
PGDATA = "/var/lib/postgresql/data"


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
    capacity: rules.Capacity
    colour: str = COLOURS[0]
    # Of an instance's release: PostgreSQL and what the volumes keep outlive it.
    odoo_labels: dict[str, str] = field(default_factory=dict)

    @property
    def network(self) -> str:
        return self.prefix

    @property
    def postgres(self) -> str:
        return _postgres_name(self.prefix)

    @property
    def odoo(self) -> str:
        return _odoo_name(self.prefix, self.colour)

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
            shared_memory_bytes=self.capacity.shared_memory_bytes,
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
            labels=self.labels | self.odoo_labels | {ROLE_LABEL: "odoo"},
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


def containers_of(release: Release) -> tuple[str, str]:
    """The names of Odoo's container and of its PostgreSQL's, in the order in which they are stopped.

    The other way round Odoo would see its database vanish.
    """
    return odoo_container(release), _postgres_name(_prefix_of(release.instance_id))


def status_of_containers(release: Release, containers: Sequence[ContainerState]) -> str:
    """The status of an instance whose containers are seen like this."""
    states = {container.name: container.state for container in containers}
    both = {states.get(name) for name in containers_of(release)}
    if both == {"running"}:
        return "running"
    return "stopped" if both <= {"exited", "created"} else "failed"


def odoo_container(release: Release) -> str:
    """The name of the container that runs the release's Odoo."""
    return _odoo_name(_prefix_of(release.instance_id), release.colour)


def parts_of(instance: Instance, release: Release, images: Images) -> Parts:
    """The parts of an instance; `images` are those of its release by what the engine knows them."""
    prefix = _prefix_of(instance.id)
    return Parts(
        prefix=prefix,
        labels=instance_labels(instance.id),
        images=images,
        volumes=Volumes(f"{prefix}-pgdata", f"{prefix}-filestore"),
        capacity=rules.CAPACITIES[instance.environment_type],
        colour=release.colour,
        odoo_labels={RELEASE_LABEL: str(release.id)},
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
        capacity=rules.CAPACITIES[instance.environment_type],
    )
    return parts, f"{prefix}-complete"


def _prefix_of(instance_id: UUID) -> str:
    return f"deployerp-{instance_id}"


def _odoo_name(prefix: str, colour: str) -> str:
    return f"{prefix}-odoo-{colour}"


def _postgres_name(prefix: str) -> str:
    return f"{prefix}-postgres"
