"""The `docker` provider as a libcloud driver: each node is a container with sshd and its own engine."""

import hashlib
import io
import itertools
import json
import random
import re
import secrets
import socket
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import Mount
from docker.utils import kwargs_from_env
from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import LibcloudError
from libcloud.compute.base import (
    Node,
    NodeAuthPassword,
    NodeAuthSSHKey,
    NodeDriver,
    NodeImage,
    NodeLocation,
    NodeSize,
)
from libcloud.compute.types import NodeState

DEFAULT_IMAGE = "deployerp/node:1"
_USER_DATA_PATH = "/var/lib/deployerp/user-data"
_ADDRESS = "127.0.0.1"

# Our own labels; every other label is a tag.
_NODE_LABEL = "deployerp.node"
_PORTS_LABEL = "deployerp.node.ports"

_VOLUME_SUFFIX = "-docker"

_PORT_NAMES = ("ssh", "http", "https")
_CONTAINER_PORTS = (22, 80, 443)
# Below the range that kernels give to outgoing connections: a stopped node keeps its ports.
_HOST_PORTS = range(20_000, 30_000)
_PORT_TRIES = 5

# dockerd in the node gives its containers 45 s to end (user_data.sh).
_STOP_SECONDS = 60

_SIZES = {
    "small": {"vcpus": 1, "ram_mb": 2_048},
    "medium": {"vcpus": 2, "ram_mb": 4_096},
    "large": {"vcpus": 4, "ram_mb": 8_192},
}

# What lets an engine run in a container, the usual way first. Engines that lack capabilities
# themselves (in sandboxes and virtual machines cut to size) cannot grant all of them, but these.
_CONFINEMENTS: tuple[dict[str, Any], ...] = (
    {"privileged": True},
    {
        # SYS_PTRACE: to run a program in a container of another user's, as Docker's exec does.
        "cap_add": ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"],
        "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
        "cgroupns": "host",
        "binds": ["/sys/fs/cgroup:/sys/fs/cgroup:rw"],
    },
)

_STATES = {
    # Between its making and its first start there is a moment; what stays so was broken off.
    "created": NodeState.ERROR,
    "restarting": NodeState.REBOOTING,
    "running": NodeState.RUNNING,
    "paused": NodeState.PAUSED,
    "removing": NodeState.TERMINATED,
    "exited": NodeState.STOPPED,
    "dead": NodeState.ERROR,
}


class DockerNodeDriver(NodeDriver):
    """Nodes on the engine of `DOCKER_HOST`, or the local one; raises libcloud's own exceptions."""

    name = "Docker"
    website = "https://www.docker.com"
    type = "docker"

    # What this process found to work; finding it out costs a failed start.
    _confinement: ClassVar[dict[str, Any] | None] = None

    def __init__(self, *, timeout: int = 30, image: str = DEFAULT_IMAGE) -> None:
        """`timeout` is in seconds, per call to the engine; `image` is what nodes are made of by default."""
        # Not super(): there is no HTTP connection for libcloud to set up.
        self.timeout = timeout
        self._image = image

    def list_nodes(self) -> list[Node]:
        with self._engine() as engine:
            # Volumes first: then a node that is created in between is not taken for a leftover volume.
            volumes = engine.volumes(filters={"label": _NODE_LABEL})["Volumes"] or []
            nodes = [
                self._to_node(found) for found in engine.containers(all=True, filters={"label": _NODE_LABEL})
            ]
        made = {_volume(str(node.id)) for node in nodes}
        return nodes + [self._to_terminated(volume) for volume in volumes if volume["Name"] not in made]

    def create_node(
        self,
        name: str,
        size: NodeSize,
        image: NodeImage | None = None,
        location: NodeLocation | None = None,
        auth: NodeAuthSSHKey | NodeAuthPassword | None = None,
        *,
        ex_userdata: str = "",
        ex_metadata: Mapping[str, str] | None = None,
        ex_clienttoken: str | None = None,
    ) -> Node:
        """Create and start a container; calls with the same `ex_clienttoken` give the same node.

        `ex_userdata` is a shell script that the node runs as root at each boot, `ex_metadata` its tags.
        """
        if size.id not in _SIZES:
            raise _http_error(400, f"there is no size {size.id!r}; the sizes are {', '.join(_SIZES)}")
        container = _Container(
            name=_node_id(ex_clienttoken or secrets.token_hex(16)),
            hostname=_hostname(name),
            image=image.id if image else self._image,
            size=size.id,
            labels={**(ex_metadata or {}), _NODE_LABEL: name},
            user_data=ex_userdata,
        )
        with self._engine() as engine:
            engine.inspect_image(container.image)  # type: ignore[no-untyped-call]
            found = self._find(engine, container.name)
            if found and found["State"] == "created":
                # An attempt broke off before the first start: its user data may not have arrived.
                with suppress(NotFound):
                    engine.remove_container(found["Id"], force=True, v=True)
                found = None
            if found is None:
                self._create(engine, container)
            if not (made := self._find(engine, container.name)):
                raise _http_error(409, "another call has destroyed the node meanwhile")
            return self._to_node(made)

    def destroy_node(self, node: Node) -> bool:
        with self._engine() as engine:
            with suppress(NotFound):
                engine.remove_container(str(node.id), force=True, v=True)
            # After the container and also without one: an attempt that broke off in between comes back here.
            with suppress(NotFound):
                engine.remove_volume(_volume(str(node.id)))
        return True

    def start_node(self, node: Node) -> bool:
        with self._engine() as engine:
            engine.start(str(node.id))
        return True

    def stop_node(self, node: Node) -> bool:
        with self._engine() as engine:
            engine.stop(str(node.id), timeout=_STOP_SECONDS)
        return True

    def reboot_node(self, node: Node) -> bool:
        with self._engine() as engine:
            engine.restart(str(node.id), timeout=_STOP_SECONDS)
        return True

    def list_sizes(self, location: NodeLocation | None = None) -> list[NodeSize]:
        return [
            NodeSize(
                id=size_id,
                name=f"{size_id}: {size['vcpus']} vCPU, {size['ram_mb'] // 1024} GB",
                ram=size["ram_mb"],
                disk=0,
                bandwidth=None,
                price=0.0,
                driver=self,
                extra={"vcpus": size["vcpus"]},
            )
            for size_id, size in _SIZES.items()
        ]

    def list_images(self, location: NodeLocation | None = None) -> list[NodeImage]:
        with self._engine() as engine:
            name = self._image.rpartition(":")[0]
            tags = {tag for image in engine.images(name=name) for tag in image["RepoTags"] or ()}
        return [NodeImage(id=tag, name=tag, driver=self) for tag in sorted(tags)]

    def list_locations(self) -> list[NodeLocation]:
        return [NodeLocation(id="local", name="this machine", country="", driver=self)]

    @contextmanager
    def _engine(self) -> Iterator[docker.APIClient]:
        try:
            with closing(
                docker.APIClient(version="auto", timeout=self.timeout, **kwargs_from_env())
            ) as engine:
                yield engine
        except APIError as error:
            raise _http_error(error.status_code or 500, error.explanation or "") from error
        except (DockerException, OSError) as error:
            raise LibcloudError("the Docker engine does not answer", driver=self) from error

    def _create(self, engine: docker.APIClient, container: "_Container") -> None:
        """Start a new container in the first confinement and on the first ports that work."""
        known = DockerNodeDriver._confinement
        failure: APIError | None = None
        for confinement in (known,) if known else _CONFINEMENTS:
            for ports in self._free_ports(engine):
                created = engine.create_container(**_creation(engine, container, confinement, ports))["Id"]
                failure = self._first_boot(engine, created, container)
                if failure is None:
                    DockerNodeDriver._confinement = confinement
                    return
                if all(map(_is_free, ports)):
                    break
        # In use means that another call has made the node meanwhile.
        with suppress(APIError):
            engine.remove_volume(container.volume)
        raise failure or LibcloudError("no free ports on the loopback address", driver=self)

    def _first_boot(self, engine: docker.APIClient, created: str, container: "_Container") -> APIError | None:
        """What kept a created container from starting, if anything; it is removed then.

        `created` is an engine's id and not our name, so that one call never removes another's container.
        """
        try:
            # As a file that only root reads: environment and arguments show in `docker inspect`.
            engine.put_archive(created, "/", _archive(_USER_DATA_PATH, container.user_data.encode()))
            engine.start(created)
        except NotFound as error:
            raise _http_error(409, "another call is making or destroying the same node") from error
        except APIError as error:
            with suppress(NotFound):
                engine.remove_container(created, force=True, v=True)
            return error
        return None

    def _find(self, engine: docker.APIClient, node_id: str) -> dict[str, Any] | None:
        found = engine.containers(all=True, filters={"label": _NODE_LABEL, "name": f"^/{node_id}$"})
        return found[0] if found else None

    def _free_ports(self, engine: docker.APIClient) -> Iterator[tuple[int, ...]]:
        """Triples of ports that nobody listens on and no stopped node will want back."""
        for _ in range(_PORT_TRIES):
            nodes = engine.containers(all=True, filters={"label": _NODE_LABEL})
            taken = {port for node in nodes for port in _ports(node["Labels"]).values()}
            free = (port for port in random.sample(_HOST_PORTS, len(_HOST_PORTS)) if port not in taken)
            ports = tuple(itertools.islice(filter(_is_free, free), len(_PORT_NAMES)))
            if len(ports) == len(_PORT_NAMES):
                yield ports

    def _to_terminated(self, volume: dict[str, Any]) -> Node:
        """A terminated node, for the volume that an interrupted destruction has left."""
        labels = volume["Labels"]
        return Node(
            id=volume["Name"].removesuffix(_VOLUME_SUFFIX),
            name=labels[_NODE_LABEL],
            state=NodeState.TERMINATED,
            public_ips=[],
            private_ips=[],
            driver=self,
            extra={"ports": {}, "tags": _tags(labels)},
        )

    def _to_node(self, container: dict[str, Any]) -> Node:
        labels = container["Labels"]
        return Node(
            id=container["Names"][0].lstrip("/"),
            name=labels[_NODE_LABEL],
            state=_STATES.get(container["State"], NodeState.UNKNOWN),
            public_ips=[_ADDRESS],
            private_ips=[],
            driver=self,
            extra={"ports": _ports(labels), "tags": _tags(labels)},
        )


@dataclass(frozen=True)
class _Container:
    name: str
    hostname: str
    image: str
    size: str
    labels: Mapping[str, str]
    user_data: str = field(repr=False)

    @property
    def volume(self) -> str:
        return _volume(self.name)


def _creation(
    engine: docker.APIClient, container: _Container, confinement: Mapping[str, Any], ports: Sequence[int]
) -> dict[str, Any]:
    """The arguments of the engine's create_container."""
    size = _SIZES[container.size]
    options = {
        **confinement,
        # Created together with the container: no list of nodes would show a volume that came first.
        "mounts": [Mount("/var/lib/docker", container.volume, labels=dict(container.labels), no_copy=True)],
        "port_bindings": {
            inner: (_ADDRESS, outer) for inner, outer in zip(_CONTAINER_PORTS, ports, strict=True)
        },
        "mem_limit": size["ram_mb"] * 1024 * 1024,
        "cpu_period": 100_000,
        "cpu_quota": size["vcpus"] * 100_000,
        "restart_policy": {"Name": "unless-stopped"},
    }
    return {
        "image": container.image,
        "name": container.name,
        "hostname": container.hostname,
        "labels": {
            **container.labels,
            _PORTS_LABEL: json.dumps(dict(zip(_PORT_NAMES, ports, strict=True))),
        },
        "stop_timeout": _STOP_SECONDS,
        "ports": list(_CONTAINER_PORTS),
        "host_config": engine.create_host_config(**options),
    }


def _http_error(code: int, message: str) -> BaseHTTPError:
    return BaseHTTPError(code, message)  # type: ignore[no-untyped-call]


def _volume(node_id: str) -> str:
    return f"{node_id}{_VOLUME_SUFFIX}"


def _tags(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if not key.startswith(_NODE_LABEL)}


def _node_id(client_token: str) -> str:
    """The container's name: it makes a second creation with the same token meet the first one."""
    return f"deployerp-node-{hashlib.sha256(client_token.encode()).hexdigest()[:16]}"


def _hostname(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:63].strip("-") or "node"


def _ports(labels: Mapping[str, str]) -> dict[str, int]:
    ports: dict[str, int] = json.loads(labels.get(_PORTS_LABEL, "{}"))
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the engine's proxy does; without it, connections in TIME_WAIT would count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_ADDRESS, port))
        except OSError:
            return False
    return True


def _archive(path: str, content: bytes) -> bytes:
    """A tar file with one file that only root may read."""
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.size = len(content)
    entry.mode = 0o600
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
