"""Every cloud through libcloud: one row per provider kind says how it differs."""

import asyncio
import gzip
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from libcloud.common.exceptions import RateLimitReachedError
from libcloud.common.types import InvalidCredsError
from libcloud.compute import base
from libcloud.compute.drivers.digitalocean import DigitalOcean_v2_NodeDriver
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState as State
from libcloud.compute.types import Provider

from deployerp.core.errors import (
    AddressRefused,
    CredentialsRefused,
    ProviderError,
    ProviderRefused,
    ProviderThrottled,
)
from deployerp.core.uninterrupted import uninterrupted
from deployerp.drivers.clouds.cloud import (
    Cloud,
    Image,
    Location,
    Node,
    NodeSpec,
    NodeState,
    Size,
    credential_fields,
    provider_kinds,
)
from deployerp.drivers.clouds.docker import DEFAULT_IMAGE, DockerNodeDriver
from deployerp.drivers.reasons import connection_failure
from deployerp.drivers.web.guarded_requests import guard
from deployerp.drivers.web.urls import Network

# At DEBUG it writes whole URLs, and EC2's hold the user data.
logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)

_TIMEOUT_SECONDS = 30
_THROTTLED_SECONDS = 30.0

# Worth another try although the code says that the request was wrong: a timeout, a conflict with
# something still going on, a lock, "too early".
_PASSING_CODES = frozenset({408, 409, 423, 425})
# Rate limits, and what EC2 (RequestLimitExceeded) and OpenStack say for them.
_THROTTLING_CODES = frozenset({429, 503})

_STATES: Mapping[State, NodeState] = {
    State.PENDING: "pending",
    State.STARTING: "pending",
    State.REBOOTING: "running",
    State.RUNNING: "running",
    State.STOPPED: "stopped",
    State.TERMINATED: "terminated",
    State.ERROR: "failed",
}

T = TypeVar("T")


@dataclass(frozen=True)
class _Row:
    """How one kind of provider differs from the others.

    `connect`: the driver from credentials and further constructor arguments. `creation`: what its
    create_node calls user data, tags and client token. `tags`: reads them back from a node.
    `find`: narrows list_nodes to tags or an id where the API can.
    """

    connect: Callable[[Mapping[str, str], Mapping[str, Any]], base.NodeDriver]
    creation: Callable[[NodeSpec, Mapping[str, str]], dict[str, Any]]
    tags: Callable[[base.Node], Mapping[str, str]]
    by_tags: Callable[[Mapping[str, str]], dict[str, Any]] = lambda tags: {}
    by_id: Callable[[str], dict[str, Any]] = lambda node_id: {}
    start: str = "start_node"
    stop: str = "stop_node"
    default_image: str | None = None
    default_location: bool = False
    passes_location: bool = True
    # The credentials name an address: whoever answers there is not trusted.
    tenant_address: bool = False


def _connect_docker(credentials: Mapping[str, str], options: Mapping[str, Any]) -> base.NodeDriver:
    return DockerNodeDriver(**options)


def _connect_aws(credentials: Mapping[str, str], options: Mapping[str, Any]) -> base.NodeDriver:
    return get_driver(Provider.EC2)(
        credentials["access_key_id"],
        credentials["secret_access_key"],
        region=credentials["region"],
        token=credentials.get("session_token"),
        signature_version="4",
        **options,
    )


class _DigitalOcean(DigitalOcean_v2_NodeDriver):
    def __new__(cls, *_arguments: object, **_options: object) -> "_DigitalOcean":
        # libcloud's own hands options, such as the timeout, to `object`, which takes none.
        return object.__new__(cls)


def _connect_digitalocean(credentials: Mapping[str, str], options: Mapping[str, Any]) -> base.NodeDriver:
    return _DigitalOcean(credentials["token"], **options)


def _connect_openstack(credentials: Mapping[str, str], options: Mapping[str, Any]) -> base.NodeDriver:
    domain = credentials.get("domain", "Default")
    return get_driver(Provider.OPENSTACK)(
        credentials["username"],
        credentials["password"],
        api_version="2.2",
        ex_force_auth_url=credentials["auth_url"],
        ex_force_auth_version="3.x_password",
        ex_tenant_name=credentials["project"],
        ex_domain_name=domain,
        ex_force_service_region=credentials["region"],
        **options,
    )


def _aws_creation(spec: NodeSpec, credentials: Mapping[str, str]) -> dict[str, Any]:
    group = credentials.get("security_group")
    return {
        # libcloud puts it into the URL, where size counts, and cloud-init unpacks it. Without a time
        # in it, since EC2 refuses a client token that comes again with other arguments.
        "ex_userdata": gzip.compress(spec.user_data.encode(), mtime=0),
        "ex_metadata": dict(spec.tags),
        "ex_clienttoken": spec.client_token,
        **({"ex_security_groups": [group]} if group else {}),
    }


# DigitalOcean's tags are words of letters, digits, colons, dashes and underscores.
def _as_words(tags: Mapping[str, str]) -> list[str]:
    return [f"{key.replace('.', ':')}:{value}" for key, value in tags.items()]


def _from_words(words: list[str]) -> Mapping[str, str]:
    pairs = (word.rpartition(":") for word in words if ":" in word)
    return {key.replace(":", "."): value for key, _, value in pairs}


_ROWS: Mapping[str, _Row] = {
    "docker": _Row(
        connect=_connect_docker,
        creation=lambda spec, credentials: {
            "ex_userdata": spec.user_data,
            "ex_metadata": spec.tags,
            "ex_clienttoken": spec.client_token,
        },
        tags=lambda node: node.extra["tags"],
        default_image=DEFAULT_IMAGE,
        default_location=True,
    ),
    "aws": _Row(
        connect=_connect_aws,
        creation=_aws_creation,
        tags=lambda node: node.extra["tags"],
        by_tags=lambda tags: {"ex_filters": {f"tag:{key}": value for key, value in tags.items()}},
        # Not ex_node_ids: EC2 answers an unknown id there with an error.
        by_id=lambda node_id: {"ex_filters": {"instance-id": node_id}},
        # The region comes with the credentials, and EC2 chooses the zone.
        passes_location=False,
        default_location=True,
    ),
    "digitalocean": _Row(
        connect=_connect_digitalocean,
        creation=lambda spec, credentials: {
            "ex_user_data": spec.user_data,
            "ex_create_attr": {"tags": _as_words(spec.tags)},
        },
        tags=lambda node: _from_words(node.extra.get("tags", [])),
        start="ex_power_on_node",
        stop="ex_shutdown_node",
    ),
    "openstack": _Row(
        connect=_connect_openstack,
        creation=lambda spec, credentials: {"ex_userdata": spec.user_data, "ex_metadata": dict(spec.tags)},
        tags=lambda node: node.extra["metadata"],
        tenant_address=True,
        # OpenStack's create_node has no location: the region comes with the credentials.
        passes_location=False,
        default_location=True,
    ),
}


class LibcloudClouds:
    """Opens accounts of every kind that has a row; `options` are further constructor arguments by kind.

    `allowed_networks` are the only ones, besides public ones, to which an address in credentials may lead.
    """

    def __init__(
        self,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        allowed_networks: Sequence[Network] = (),
    ) -> None:
        self._options = options or {}
        self._allowed_networks = allowed_networks

    def open(self, kind: str, credentials: Mapping[str, str]) -> Cloud:
        if kind not in provider_kinds():
            raise ProviderRefused(f"There is no provider kind {kind!r}; use one of {', '.join(_ROWS)}.")
        fields = credential_fields(kind)
        missing = [field.name for field in fields if field.required and not credentials.get(field.name)]
        unknown = sorted(set(credentials) - {field.name for field in fields})
        if missing or unknown:
            raise ProviderRefused(
                f"The credentials of a provider of kind {kind} are not complete or hold too much.",
                details={"missing": missing, "unknown": unknown},
            )
        return LibcloudCloud(
            kind, _ROWS[kind], credentials, self._options.get(kind, {}), self._allowed_networks
        )


class LibcloudCloud:
    """One account; calls run one after the other, since libcloud's drivers are not thread-safe."""

    def __init__(
        self,
        kind: str,
        row: _Row,
        credentials: Mapping[str, str],
        options: Mapping[str, Any],
        allowed_networks: Sequence[Network],
    ) -> None:
        self._allowed_networks = allowed_networks
        self._kind = kind
        self._row = row
        self._credentials = credentials
        self._options = {"timeout": _TIMEOUT_SECONDS, **options}
        self._driver: base.NodeDriver | None = None
        # Of its own, so that an account that hangs keeps no other waiting; its one thread makes calls wait
        # for each other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"cloud-{kind}")

    async def find_nodes(self, tags: Mapping[str, str]) -> list[Node]:
        return await self._call(lambda driver: self._list(driver, self._row.by_tags(tags), tags))

    async def get_node(self, node_id: str) -> Node | None:
        return await self._call(lambda driver: self._get(driver, node_id))

    async def create_node(self, spec: NodeSpec) -> Node:
        arguments = self._creation(spec)
        return await self._call(lambda driver: self._node(driver.create_node(**arguments(driver))))

    async def destroy_node(self, node_id: str) -> None:
        await self._call(lambda driver: self._destroy(driver, node_id))

    async def start_node(self, node_id: str) -> None:
        await self._act(self._row.start, node_id)

    async def stop_node(self, node_id: str) -> None:
        await self._act(self._row.stop, node_id)

    async def reboot_node(self, node_id: str) -> None:
        await self._act("reboot_node", node_id)

    async def list_sizes(self) -> list[Size]:
        return await self._call(lambda driver: [_size(size) for size in driver.list_sizes()])

    async def list_images(self) -> list[Image]:
        return await self._call(lambda driver: [Image(i.id, i.name or i.id) for i in driver.list_images()])

    async def list_locations(self) -> list[Location]:
        return await self._call(
            lambda driver: [Location(at.id, at.name, at.country or "") for at in driver.list_locations()]
        )

    def _creation(self, spec: NodeSpec) -> Callable[[base.NodeDriver], dict[str, Any]]:
        """The arguments of create_node; drivers only look at ids and names, so nothing is listed first."""
        image = spec.image or self._options.get("image", self._row.default_image)
        if image is None:
            raise ProviderRefused(f"A provider of kind {self._kind} has no default image: name one.")
        if spec.location is None and not self._row.default_location:
            raise ProviderRefused(f"A provider of kind {self._kind} has no default location: name one.")

        def arguments(driver: base.NodeDriver) -> dict[str, Any]:
            given: dict[str, Any] = {
                "name": spec.name,
                "size": base.NodeSize(spec.size, spec.size, 0, 0, None, 0.0, driver),
                "image": base.NodeImage(image, image, driver),
                **self._row.creation(spec, self._credentials),
            }
            if self._row.passes_location and spec.location is not None:
                given["location"] = base.NodeLocation(spec.location, spec.location, "", driver)
            return given

        return arguments

    def _list(
        self, driver: base.NodeDriver, narrowing: dict[str, Any], tags: Mapping[str, str]
    ) -> list[Node]:
        nodes = (self._node(found) for found in driver.list_nodes(**narrowing))
        return [node for node in nodes if node.state != "terminated" and tags.items() <= node.tags.items()]

    def _get(self, driver: base.NodeDriver, node_id: str) -> Node | None:
        nodes = self._list(driver, self._row.by_id(node_id), {})
        return next((node for node in nodes if node.id == node_id), None)

    def _destroy(self, driver: base.NodeDriver, node_id: str) -> None:
        try:
            driver.destroy_node(_reference(driver, node_id))
        except Exception:
            # Clouds disagree on what they answer for an absent node, so look. A terminated node that is still
            # listed has parts left.
            if node_id in {str(node.id) for node in driver.list_nodes(**self._row.by_id(node_id))}:
                raise

    async def _act(self, verb: str, node_id: str) -> None:
        # What the verbs return says nothing: drivers raise what a cloud refuses.
        await self._call(lambda driver: getattr(driver, verb)(_reference(driver, node_id)))

    def _node(self, node: base.Node) -> Node:
        ports: Mapping[str, int] = node.extra.get("ports", {})
        return Node(
            id=str(node.id),
            name=node.name or "",
            state=_STATES.get(node.state, "unknown"),
            address=next((address for address in node.public_ips if address), None),
            ssh_port=ports.get("ssh", 22),
            http_port=ports.get("http", 80),
            https_port=ports.get("https", 443),
            tags=dict(self._row.tags(node)),
        )

    async def _call(self, work: Callable[[base.NodeDriver], T]) -> T:
        loop = asyncio.get_running_loop()
        return await uninterrupted(loop.run_in_executor(self._thread, self._translated, work))

    def _translated(self, work: Callable[[base.NodeDriver], T]) -> T:
        try:
            if self._driver is None:
                # Here and not in the constructor, since some drivers call the cloud when they are made.
                self._driver = self._connect()
            return work(self._driver)
        except ProviderRefused:
            raise
        except AddressRefused as error:
            raise ProviderRefused(error.message) from None
        except Exception as error:
            raise self._classified(error) from error

    def _connect(self) -> base.NodeDriver:
        driver = self._row.connect(self._credentials, self._options)
        return guard(driver, self._allowed_networks) if self._row.tenant_address else driver

    def _classified(self, error: Exception) -> ProviderError:
        code = _code(error)
        # Its own exceptions keep what was said under two names.
        said = self._without_secrets(getattr(error, "message", "") or getattr(error, "value", "") or "")
        if self._row.tenant_address:
            # Anybody may be at that address, also somebody whose answer the tenant must not read.
            said = ""
        if code is None and isinstance(error, OSError):
            return ProviderError(f"Could not reach the {self._kind} API: {connection_failure(error)}.")
        sentence = f"The {self._kind} API answered {code or type(error).__name__}"
        sentence += f": {said}" if said else "."
        match error:
            case RateLimitReachedError():
                return ProviderThrottled(sentence, retry_after=error.retry_after or _THROTTLED_SECONDS)
            case InvalidCredsError():
                return CredentialsRefused(f"{sentence} Check the credentials and what they may do.")
            # How drivers refuse an argument before they call anyone. (Broken JSON is a ValueError too,
            # but libcloud wraps it.)
            case ValueError() | AttributeError() | NotImplementedError() if not isinstance(error, OSError):
                return ProviderRefused(f"{sentence} Check size, image and location.")
            case _ if code in _THROTTLING_CODES:
                return ProviderThrottled(sentence, retry_after=_THROTTLED_SECONDS)
            case _ if code is not None and 400 <= code < 500 and code not in _PASSING_CODES:
                return ProviderRefused(sentence)
        return ProviderError(sentence)

    def _without_secrets(self, text: object) -> str:
        said = str(text)[:500]
        for field in credential_fields(self._kind):
            if field.secret and (secret := self._credentials.get(field.name)):
                said = said.replace(secret, "***")
        return said


def _code(error: Exception) -> int | None:
    """The HTTP status: libcloud's exceptions carry it under two names, and some put other things there."""
    code = getattr(error, "code", None) or getattr(error, "http_code", None)
    return code if isinstance(code, int) else None


def _reference(driver: base.NodeDriver, node_id: str) -> base.Node:
    """What libcloud's verbs need of a node: its id."""
    return base.Node(node_id, "", State.UNKNOWN, [], [], driver)


def _size(size: base.NodeSize) -> Size:
    vcpus = size.extra.get("vcpus", size.extra.get("cpu", getattr(size, "vcpus", None)))
    return Size(
        id=str(size.id),
        name=size.name,
        vcpus=None if vcpus is None else float(vcpus),
        ram_mb=int(size.ram or 0),
        disk_gb=int(size.disk or 0),
        price_hourly=None if size.price is None else float(size.price),
    )
