"""What a container should be and what it is: the data that the engine's verbs take and give."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

SPEC_LABEL = "deployerp.spec"
OUTPUT_LIMIT = 16 * 1024 * 1024

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
# Short values ("8069", "odoo") are no secrets, and hiding them would make messages unreadable.
_SHORTEST_SECRET = 8


@dataclass(frozen=True)
class PublishedPort:
    """A TCP port of the container on the server; host port 0 lets the engine choose one."""

    container: int
    host: int
    address: str = ""


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """One container, wholly described: two equal specs are one container.

    `volumes` is volume name to path in the container, `binds` is path on the server to path in the
    container, `files` is absolute path in the container, or in one of its volumes, to content (mode 0644,
    root; missing directories are made) and is in place before the first start.
    `stop_timeout` is in seconds, `nano_cpus` in billionths of a CPU.
    Raises ValueError for a variable that the engine would refuse, because its refusal prints the value.
    """

    name: str
    image: str
    labels: Mapping[str, str]
    command: Sequence[str] | None = None
    entrypoint: Sequence[str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    network: str | None = None
    aliases: Sequence[str] = ()
    volumes: Mapping[str, str] = field(default_factory=dict)
    binds: Mapping[str, str] = field(default_factory=dict)
    published_ports: Sequence[PublishedPort] = ()
    restart_policy: Literal["no", "unless-stopped"] = "no"
    memory_bytes: int | None = None
    shared_memory_bytes: int | None = None
    nano_cpus: int | None = None
    user: str | None = None
    stop_timeout: int = 10
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_environment(self.environment)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything that makes the container, the content of its files too."""
        digest = hashlib.sha256(json.dumps(self._engine_config(), sort_keys=True).encode())
        for path, content in sorted(self.files.items()):
            digest.update(f"\0{path}\0{hashlib.sha256(content).hexdigest()}".encode())
        return digest.hexdigest()

    def engine_config(self, declared_volumes: Sequence[str] = ()) -> dict[str, Any]:
        """The body of the engine's create call, with the fingerprint as a label.

        Volumes that the image declares and the specification does not mount become tmpfs mounts. The engine
        would make anonymous volumes for them, which have no label and are left behind when it is killed while
        it removes their container. A tmpfs belongs to root, whoever owns the directory in the image: mount
        what another user writes to.
        """
        config = self._engine_config()
        config["Labels"][SPEC_LABEL] = self.fingerprint()
        unmounted = set(declared_volumes) - {*self.volumes.values(), *self.binds.values()}
        config["HostConfig"]["Tmpfs"] = dict.fromkeys(sorted(unmounted), "")
        return config

    def _engine_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "Image": self.image,
            "Labels": dict(self.labels),
            "Env": [f"{name}={value}" for name, value in sorted(self.environment.items())],
            "StopTimeout": self.stop_timeout,
            "ExposedPorts": {f"{port.container}/tcp": {} for port in self.published_ports},
            "HostConfig": {
                "RestartPolicy": {"Name": self.restart_policy},
                "Binds": [f"{source}:{target}" for source, target in sorted(self.binds.items())],
                "Mounts": [self._volume_mount(*volume) for volume in sorted(self.volumes.items())],
                "PortBindings": {
                    f"{port.container}/tcp": [{"HostIp": port.address, "HostPort": str(port.host)}]
                    for port in self.published_ports
                },
                "Memory": self.memory_bytes or 0,
                "NanoCpus": self.nano_cpus or 0,
                # The engine's own default lets a talkative container fill the server's disk.
                "LogConfig": {
                    "Type": "json-file",
                    "Config": {"max-size": "10m", "max-file": "3"},
                },
            },
        }
        optional = {
            "Cmd": self.command,
            "Entrypoint": self.entrypoint,
            "User": self.user,
        }
        config.update({key: value for key, value in optional.items() if value is not None})
        if self.shared_memory_bytes is not None:
            config["HostConfig"]["ShmSize"] = self.shared_memory_bytes
        if self.network is not None:
            config["HostConfig"]["NetworkMode"] = self.network
            config["NetworkingConfig"] = {"EndpointsConfig": {self.network: {"Aliases": list(self.aliases)}}}
        return config

    def _volume_mount(self, name: str, path: str) -> dict[str, Any]:
        # The engine makes a missing volume by itself: then at least with labels, so that it is found again.
        return {
            "Type": "volume",
            "Source": name,
            "Target": path,
            "VolumeOptions": {"Labels": dict(self.labels)},
        }


@dataclass(frozen=True)
class ContainerState:
    """A container as the engine sees it.

    `state` is the engine's word (created, running, restarting, exited ...), `health` is `starting`,
    `healthy`, `unhealthy` or None without a health check, `exit_code` is that of the last run: None while it
    runs and before its first start; `networks` is network name to address (empty while stopped).
    """

    id: str
    name: str
    state: str
    health: str | None
    labels: Mapping[str, str]
    image: str
    exit_code: int | None
    started_at: datetime | None
    networks: Mapping[str, str]
    image_id: str

    @classmethod
    def from_engine(cls, inspected: Mapping[str, Any]) -> "ContainerState":
        state = inspected["State"]
        started = state["StartedAt"]
        never_started = started.startswith("0001-")
        # While it waits to restart a container, the engine calls it running as well.
        runs = state["Running"] and not state.get("Restarting")
        return cls(
            id=inspected["Id"],
            name=inspected["Name"].removeprefix("/"),
            state=state["Status"],
            health=state.get("Health", {}).get("Status"),
            labels=inspected["Config"]["Labels"] or {},
            image=inspected["Config"]["Image"],
            exit_code=None if runs or never_started else state["ExitCode"],
            started_at=None if never_started else datetime.fromisoformat(_microseconds(started)),
            networks={
                name: endpoint["IPAddress"]
                for name, endpoint in inspected["NetworkSettings"]["Networks"].items()
            },
            image_id=inspected["Image"],
        )


@dataclass(frozen=True)
class Executed:
    """How a program in a container ended and what it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its standard output as text, without the white space around it."""
        return self.stdout.decode(errors="replace").strip()

    def tail(self, environment: Mapping[str, str], limit: int = 4000) -> str:
        """The end of all it wrote, at most `limit` characters, the values of `environment` hidden."""
        text = (self.stdout + b"\n" + self.stderr).decode(errors="replace").strip()
        return without_secrets(text, environment)[-limit:]


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise ValueError, which names the variable and never its value."""
    for name, value in environment.items():
        if not _VARIABLE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of an environment variable")
        if "\0" in value:
            raise ValueError(f"the value of environment variable {name} holds a NUL character")


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text with every value of the environment that could be a secret replaced by `***`."""
    return masked(text, (value for value in environment.values() if len(value) >= _SHORTEST_SECRET))


def masked(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret replaced by `***`: also where it is escaped, or one line of it alone."""
    forms = {form for secret in secrets for form in _forms(secret) if form}
    if not forms:
        return text
    # Longest first: a value that is part of another must not leave the other's rest behind.
    longest_first = sorted(forms, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "***", text)


def _forms(secret: str) -> Iterator[str]:
    yield from (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe=""))
    yield from (line for line in secret.splitlines() if len(line) >= _SHORTEST_SECRET)


def archive(files: Mapping[str, bytes]) -> bytes:
    """A tar of the files, owned by root, to be unpacked at `/`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size = len(content)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _microseconds(timestamp: str) -> str:
    # The engine counts in nanoseconds, as many digits as it needs; Python reads six at most.
    seconds, _, fraction = timestamp.rstrip("Z").partition(".")
    return f"{seconds}.{fraction[:6].ljust(6, '0')}+00:00"
