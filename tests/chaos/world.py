"""What there is on this machine of a control plane: nodes, and what is in the engine of each."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deployerp.domain.installations import INSTALLATION_TAG
from deployerp.domain.servers import SERVER_TAG
from tests.e2e.world import output_of, run

# Docker's own, which every engine has.
_OWN_NETWORKS = {"bridge", "host", "none"}
_LOOK_SECONDS = 30
_LIST_HELD_LOCKS = """
for lock in /run/deployerp-*.lock; do
    test -e "$lock" || continue
    flock --nonblock "$lock" true || echo "$lock"
done
"""
_HEALTH_SECONDS = 60


@dataclass(frozen=True)
class Thing:
    """A container, network or volume in a node's engine; `state` is that of a container."""

    kind: str
    name: str
    instance: str = ""
    prepared: str = ""
    state: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.name, f"({self.state})" if self.state else "")))


@dataclass(frozen=True)
class Node:
    """A container that is a server's machine; what is in it is known while it runs."""

    name: str
    server_id: str
    state: str
    answers_ssh: bool = False
    has_engine: bool = False
    things: tuple[Thing, ...] = ()
    routes: frozenset[str] = frozenset()
    """The instances that the node's Caddy has a route for."""
    held_locks: tuple[str, ...] = ()


@dataclass(frozen=True)
class World:
    nodes: tuple[Node, ...] = ()
    volumes: Mapping[str, str] = field(default_factory=dict)
    """The server of each volume on this machine."""
    healthy: frozenset[str] = frozenset()
    """The URLs that answer through their server's proxy, of those that were asked for."""


async def look(installation: str, urls: Mapping[str, str]) -> World:
    """The world of an installation; `urls` are those of instances that are expected to answer, by id."""
    nodes = await asyncio.gather(*(_look_at(name) for name in await node_names(installation)))
    found = await output_of(
        *("docker", "volume", "ls", "--filter", f"label={INSTALLATION_TAG}={installation}"),
        *("--format", f'{{{{.Name}}}} {{{{.Label "{SERVER_TAG}"}}}}'),
    )
    volumes = dict(line.split() for line in found.splitlines())
    healthy = await asyncio.gather(*(_is_healthy(url) for url in urls.values()))
    return World(
        tuple(nodes), volumes, frozenset(key for key, good in zip(urls, healthy, strict=True) if good)
    )


async def node_names(installation: str, *conditions: str) -> list[str]:
    filters = [f"--filter={each}" for each in (f"label={INSTALLATION_TAG}={installation}", *conditions)]
    return (await output_of("docker", "ps", "--all", *filters, "--format", "{{.Names}}")).split()


async def remove_nodes(installation: str) -> None:
    """By force, for the end of a run that has failed."""
    for name in await node_names(installation):
        await run("docker", "rm", "--force", "--volumes", name)
    for name in (await look(installation, {})).volumes:
        await run("docker", "volume", "rm", "--force", name)


async def _look_at(name: str) -> Node:
    inspected = json.loads(await output_of("docker", "inspect", name))[0]
    labels, state = inspected["Config"]["Labels"], inspected["State"]["Status"]
    node = Node(name, labels[SERVER_TAG], state)
    if state != "running":
        return node
    return Node(
        name,
        labels[SERVER_TAG],
        state,
        await _answers_ssh(json.loads(labels["deployerp.node.ports"])["ssh"]),
        (await _inside(name, "docker version"))[0],
        (*await _containers(name), *await _others(name, "network"), *await _others(name, "volume")),
        await _routes(name),
        await _held_locks(name),
    )


async def _inside(node: str, script: str) -> tuple[bool, str]:
    command = ("timeout", str(_LOOK_SECONDS), "docker", "exec", node, "sh", "-c", script)
    ran = await run(*command)
    return ran.status == 0, ran.output


async def _listed(node: str, script: str) -> list[dict[str, Any]]:
    """What Docker's command line lists as JSON, a line each; nothing where the engine does not answer."""
    good, output = await _inside(node, script)
    return [json.loads(line) for line in output.splitlines()] if good else []


async def _containers(node: str) -> list[Thing]:
    rows = await _listed(node, "docker container ls --all --no-trunc --format '{{json .}}'")
    return [_thing("container", row["Names"], row, row["State"]) for row in rows]


async def _others(node: str, kind: str) -> list[Thing]:
    rows = await _listed(node, f"docker {kind} ls --format '{{{{json .}}}}'")
    named = [row for row in rows if kind != "network" or row["Name"] not in _OWN_NETWORKS]
    return [_thing(kind, row["Name"], row) for row in named]


def _thing(kind: str, name: str, row: Mapping[str, Any], state: str = "") -> Thing:
    labels = dict(each.partition("=")[::2] for each in row["Labels"].split(","))
    return Thing(
        kind, name, labels.get("deployerp.instance", ""), labels.get("deployerp.prepared", ""), state
    )


async def _routes(node: str) -> frozenset[str]:
    good, saved = await _inside(node, "docker exec deployerp-caddy cat /config/caddy/autosave.json")
    if not good:
        return frozenset()
    servers = json.loads(saved)["apps"]["http"]["servers"].values()
    names = [route.get("@id", "") for server in servers for route in server["routes"]]
    return frozenset(name.removeprefix("route-") for name in names if name.startswith("route-"))


async def _held_locks(node: str) -> tuple[str, ...]:
    return tuple((await _inside(node, _LIST_HELD_LOCKS))[1].split())


async def _answers_ssh(port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LOOK_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return (await reader.read(4)).startswith(b"SSH-")
            finally:
                writer.close()
    return False


async def _is_healthy(url: str) -> bool:
    """Whether Odoo answers through the published port of its server's proxy, soon."""
    host = url.partition("://")[2]
    health = f"http://127.0.0.1:{host.partition(':')[2]}/web/health"
    deadline = asyncio.get_running_loop().time() + _HEALTH_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        while asyncio.get_running_loop().time() < deadline:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(health, headers={"Host": host}) as answer:
                    if answer.status == 200:
                        return True
            await asyncio.sleep(1)
    return False
