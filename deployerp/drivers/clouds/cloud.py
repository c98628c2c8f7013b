"""The seam to the clouds: what every provider can do with nodes, in our words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

# `failed`: its creation broke off, and it will never run.
NodeState = Literal["pending", "running", "stopped", "terminated", "failed", "unknown"]


@dataclass(frozen=True)
class Size:
    """A machine type; `vcpus` and `price_hourly` (US dollars) are None where the provider does not say."""

    id: str
    name: str
    vcpus: float | None
    ram_mb: int
    disk_gb: int
    price_hourly: float | None


@dataclass(frozen=True)
class Image:
    """An operating system image."""

    id: str
    name: str


@dataclass(frozen=True)
class Location:
    """A place where nodes can be made: a region or a zone; `country` is ISO 3166 or empty."""

    id: str
    name: str
    country: str


@dataclass(frozen=True)
class Node:
    """One virtual machine; `address` is None until the provider has given it one."""

    id: str
    name: str
    state: NodeState
    address: str | None
    ssh_port: int = 22
    http_port: int = 80
    https_port: int = 443
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeSpec:
    """What to create.

    `size`, `location` and `image` are the provider's ids; `location` and `image` may be None
    where the provider has a default. `user_data` holds secrets, so it is kept out of `repr`.
    `client_token` makes the creation idempotent where the provider supports it.
    """

    name: str
    size: str
    location: str | None
    image: str | None
    user_data: str = field(repr=False)
    tags: Mapping[str, str]
    client_token: str


class Cloud(Protocol):
    """One connected account; every call may raise ProviderRefused, ProviderThrottled, ProviderError.

    A destroyed node is absent, also where the provider lists it for a while longer.
    """

    async def find_nodes(self, tags: Mapping[str, str]) -> list[Node]:
        """The nodes that carry all of `tags`."""

    async def get_node(self, node_id: str) -> Node | None: ...

    async def create_node(self, spec: NodeSpec) -> Node:
        """Ask for one node and return at once, before it runs."""

    async def destroy_node(self, node_id: str) -> None:
        """Destroy the node and its volumes; an absent node is success."""

    async def start_node(self, node_id: str) -> None: ...

    async def stop_node(self, node_id: str) -> None: ...

    async def reboot_node(self, node_id: str) -> None: ...

    async def list_sizes(self) -> list[Size]: ...

    async def list_images(self) -> list[Image]: ...

    async def list_locations(self) -> list[Location]: ...


class Clouds(Protocol):
    """Opens accounts; one opened Cloud serves one task at a time."""

    def open(self, kind: str, credentials: Mapping[str, str]) -> Cloud:
        """Raises ProviderRefused for an unknown kind and for missing or unknown credentials."""


@dataclass(frozen=True)
class CredentialField:
    """One value that a provider kind needs to be connected; `meaning` is its documentation."""

    name: str
    meaning: str
    required: bool = True
    secret: bool = True
    # Where the cloud is: users could have us call anything.
    is_url: bool = False


# Here and not beside the libcloud rows, because the API validates with it and must not reach libcloud.
_CREDENTIALS: Mapping[str, tuple[CredentialField, ...]] = {
    "docker": (),
    "aws": (
        CredentialField(
            "access_key_id", "Id of an access key that may manage EC2 instances (`AKIA...`)", secret=False
        ),
        CredentialField("secret_access_key", "The secret of the access key"),
        CredentialField(
            "session_token", "Session token, where the access key is a temporary one", required=False
        ),
        CredentialField("region", "Region in which servers are made, such as `eu-central-1`", secret=False),
        CredentialField(
            "security_group",
            "Name of the security group of servers, open for TCP 22, 80 and 443; without it, the default one",
            required=False,
            secret=False,
        ),
    ),
    "digitalocean": (
        CredentialField("token", "Personal access token that may read and write (`dop_v1_...`)"),
    ),
    "openstack": (
        CredentialField(
            "auth_url",
            "URL of Keystone, the identity service, such as `https://auth.example.com:5000`",
            secret=False,
            is_url=True,
        ),
        CredentialField("username", "Name of a user of the project", secret=False),
        CredentialField("password", "The user's password"),
        CredentialField("project", "Name of the project in which servers are made", secret=False),
        CredentialField("region", "Region in which servers are made", secret=False),
        CredentialField(
            "domain", "Domain of user and project; `Default` without it", required=False, secret=False
        ),
    ),
}


def provider_kinds() -> tuple[str, ...]:
    """The kinds of provider that can be connected."""
    return tuple(_CREDENTIALS)


def credential_fields(kind: str) -> tuple[CredentialField, ...]:
    """The credentials of a provider kind, in the order to ask for them; KeyError for an unknown kind."""
    return _CREDENTIALS[kind]


# Where a lost answer can simply be asked for again; elsewhere, look by tag before creating once more.
_IDEMPOTENT_KINDS = frozenset({"docker", "aws"})


def uses_cloud_init(kind: str) -> bool:
    """Whether nodes boot with cloud-init, which takes a cloud-config; the others run a plain script."""
    return kind != "docker"


def is_local(kind: str) -> bool:
    """Whether nodes run beside the control plane: they boot in a second, and nobody counts the calls."""
    return kind == "docker"


def honours_client_token(kind: str) -> bool:
    """Whether two creations with one client token give one node."""
    return kind in _IDEMPOTENT_KINDS
