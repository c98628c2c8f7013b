"""The one Caddy of a server: TLS and routing by host name, changed through its admin API on a Unix socket."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from deployerp.core.errors import ProxyError, ValidationFailed
from deployerp.drivers.engine.containers import ContainerSpec, PublishedPort
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.reasons import reason_of

NAME = "deployerp-caddy"
LABELS = {"deployerp.role": "caddy"}
SOCKET_DIRECTORY = "/var/lib/deployerp/caddy"
ADMIN_SOCKET = f"{SOCKET_DIRECTORY}/admin.sock"

_INNER_DIRECTORY = "/run/deployerp"
_CONFIG_FILE = "/etc/caddy/deployerp.json"
# Caddy checks the Host header of admin requests even on a socket; a name of our own suits every version.
_ADMIN_ORIGIN = "caddy"
_TIMEOUT = aiohttp.ClientTimeout(total=30)
# Each change of routes replaces the handlers of all sites: their websockets stay open for so long after it.
_WEBSOCKET_LIFE = "24h"

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# The last label starts with a letter: an address is no host name. Nor is one of Caddy's {placeholders}.
_HOST = re.compile(rf"({_LABEL}\.)*(?=[a-z]){_LABEL}")
_UPSTREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}:[0-9]{1,5}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")

# The name of Caddy's server that has a route, and the route in Caddy's JSON.
_Config = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Route:
    """Where requests for some host names go.

    `upstream` and `websocket_upstream` (for `/websocket*`; None sends that to `upstream` too) are
    `name:port` as Caddy's networks know them. With `https` the hosts get certificates and plain HTTP is
    redirected; without, they are served as plain HTTP only. Raises ValidationFailed.
    """

    id: str
    hosts: Sequence[str]
    upstream: str
    websocket_upstream: str | None = None
    https: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", tuple(self.hosts))
        upstreams = (
            [self.upstream] if self.websocket_upstream is None else [self.upstream, self.websocket_upstream]
        )
        _check("id", _ID, [self.id], "letters, digits and hyphens")
        _check("hosts", _HOST, self.hosts, "at least one host name, lower case, without wildcards")
        _check("upstream", _UPSTREAM, upstreams, "name:port")

    @property
    def server(self) -> str:
        return "https" if self.https else "http"

    def config(self) -> dict[str, Any]:
        """The route in Caddy's JSON."""
        plain = [{"handler": "encode", "encodings": {"gzip": {}}}, _proxy(self.upstream)]
        routes: list[dict[str, Any]] = [{"handle": plain}]
        if self.websocket_upstream is not None:
            websocket = {"match": [{"path": ["/websocket*"]}], "handle": [_proxy(self.websocket_upstream)]}
            routes.insert(0, {**websocket, "terminal": True})
        return {
            "@id": f"route-{self.id}",
            "match": [{"host": list(self.hosts)}],
            "handle": [{"handler": "subroute", "routes": routes}],
            "terminal": True,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], server: str) -> "Route":
        """The route that `config` gave."""
        routes = config["handle"][0]["routes"]
        upstreams = [route["handle"][-1]["upstreams"][0]["dial"] for route in routes]
        return cls(
            id=config["@id"].removeprefix("route-"),
            hosts=tuple(config["match"][0]["host"]),
            upstream=upstreams[-1],
            websocket_upstream=upstreams[0] if len(upstreams) > 1 else None,
            https=server == "https",
        )


def container_spec(image: str) -> ContainerSpec:
    """The server's Caddy: its admin API listens on ADMIN_SOCKET of the server and nowhere else."""
    return ContainerSpec(
        name=NAME,
        image=image,
        labels=LABELS,
        # --resume: what the admin API set survives restarts; the file counts only at the very first start.
        command=["caddy", "run", "--resume", "--config", _CONFIG_FILE],
        network=NAME,
        volumes={f"{NAME}-data": "/data", f"{NAME}-config": "/config"},
        binds={SOCKET_DIRECTORY: _INNER_DIRECTORY},
        published_ports=[PublishedPort(80, 80), PublishedPort(443, 443)],
        restart_policy="unless-stopped",
        files={_CONFIG_FILE: json.dumps(_initial_config()).encode()},
    )


async def ensure_caddy(
    engine: Engine, spec: ContainerSpec, instances: Mapping[str, str | None] | None = None
) -> None:
    """Make a server's Caddy run as `spec` says, plugged into the networks of the instances there.

    `instances` are the labels of those networks, by default any `deployerp.instance`.
    """
    await engine.ensure_network(str(spec.network), spec.labels)
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    # A container that was replaced has lost the networks that its routes lead to.
    for network in await engine.find_networks(instances or {"deployerp.instance": None}):
        await engine.connect_network(spec.name, network)


class Caddy:
    """A Caddy behind its admin socket, usually a forwarded one; use as an async context manager.

    Every verb raises ProxyError when it does not answer.
    """

    def __init__(self, socket_path: str) -> None:
        self._session = aiohttp.ClientSession(
            f"http://{_ADMIN_ORIGIN}/", connector=aiohttp.UnixConnector(socket_path), timeout=_TIMEOUT
        )

    async def close(self) -> None:
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def check_ready(self) -> None:
        """Raises ProxyError until it answers and has our configuration."""
        if not set(await self._servers()) >= {"http", "https"}:
            raise ProxyError("The server's Caddy does not have our configuration yet.")

    async def routes(self) -> dict[str, Route]:
        """All routes by their ids."""
        found = [Route.from_config(config, server) for server, config in _configs(await self._servers())]
        return {route.id: route for route in found}

    async def ensure_route(self, route: Route) -> None:
        """Make the route be as given. A change is one atomic step, in which no request is lost,
        unless it is between HTTP and HTTPS.
        """
        wanted = route.config()
        for server, config in _configs(await self._servers()):
            if config["@id"] != wanted["@id"]:
                continue
            if server == route.server:
                if config != wanted:
                    await self._request("PATCH", f"id/{wanted['@id']}", wanted)
                return
            await self._request("DELETE", f"id/{wanted['@id']}")
        # At the front, because the last route of each server is the one for unknown hosts.
        await self._request("PUT", f"config/apps/http/servers/{route.server}/routes/0", wanted)

    async def set_routes(self, routes: Iterable[Route]) -> None:
        """Make these be all routes, in one change; where they are already, nothing changes."""
        wanted = [(route.server, route.config()) for route in routes]
        servers = await self._servers()
        if _sorted(wanted) == _sorted(_configs(servers)):
            return
        for name, server in servers.items():
            kept = [route for route in server["routes"] if not _is_route(route)]
            server["routes"] = [*(config for owner, config in wanted if owner == name), *kept]
        await self._request("PATCH", "config/apps/http/servers", servers)

    async def remove_route(self, route_id: str) -> None:
        """Remove the route; absent is success."""
        _check("id", _ID, [route_id], "letters, digits and hyphens")
        if route_id in await self.routes():
            await self._request("DELETE", f"id/route-{route_id}")

    async def _servers(self) -> dict[str, Any]:
        return await self._request("GET", "config/apps/http/servers") or {}

    async def _request(self, method: str, path: str, body: Any = None) -> Any:
        try:
            async with self._session.request(method, path, json=body) as response:
                answer = await response.json() if response.content_type == "application/json" else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ProxyError(
                "The server's Caddy does not answer: check that its container runs.",
                details={"reason": reason_of(error)},
            ) from error
        if not response.ok:
            reason = answer.get("error") if isinstance(answer, dict) else None
            raise ProxyError(
                f"The server's Caddy refused to {method} {path}: {reason or f'status {response.status}'}",
                details={"status": response.status},
            )
        return answer


def _configs(servers: Mapping[str, Any]) -> list[_Config]:
    return [
        (name, route) for name, server in servers.items() for route in server["routes"] if _is_route(route)
    ]


def _is_route(config: Mapping[str, Any]) -> bool:
    """Whether it is of a `Route`; the one for unknown hosts is not."""
    return str(config.get("@id", "")).startswith("route-")


def _sorted(configs: Iterable[_Config]) -> list[_Config]:
    """In an order that can be compared: the one in which Caddy holds them has no meaning."""
    return sorted(configs, key=lambda each: (each[0], each[1]["@id"]))


def _proxy(upstream: str) -> dict[str, Any]:
    # It sets X-Forwarded-For, -Proto and -Host itself, and believes nobody else's: what proxy_mode needs.
    return {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": upstream}],
        "stream_close_delay": _WEBSOCKET_LIFE,
    }


def _initial_config() -> dict[str, Any]:
    unknown_host = {"handle": [{"handler": "static_response", "status_code": 404, "body": "Not found\n"}]}
    # HTTP/3 would be announced to browsers although only TCP is published.
    server = {"protocols": ["h1", "h2"], "routes": [unknown_host]}
    return {
        "admin": {"listen": f"unix/{_INNER_DIRECTORY}/admin.sock", "origins": [_ADMIN_ORIGIN]},
        "apps": {
            # Each change of routes replaces the servers: requests under way get this long to end.
            "http": {
                "grace_period": "15m",
                "servers": {
                    "http": {"listen": [":80"], **server},
                    "https": {"listen": [":443"], "tls_connection_policies": [{}], **server},
                },
            },
            "pki": {"certificate_authorities": {"local": {"install_trust": False}}},
        },
    }


def _check(field: str, pattern: re.Pattern[str], values: Sequence[str], rule: str) -> None:
    if values and all(len(value) <= 253 and pattern.fullmatch(value) for value in values):
        return
    raise ValidationFailed(
        f"{field} must be {rule}.", details={"fields": [{"field": field, "message": f"must be {rule}"}]}
    )
