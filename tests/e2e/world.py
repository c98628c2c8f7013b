"""What there really is, seen with Docker's own command line: not with the drivers that made it."""

import asyncio
from dataclasses import dataclass

_LISTS = (
    ("container", ("container", "ls", "--all", "--format", "{{.Names}}")),
    ("network", ("network", "ls", "--format", "{{.Name}}")),
    ("volume", ("volume", "ls", "--format", "{{.Name}}")),
)


@dataclass(frozen=True)
class Ran:
    status: int
    output: str


async def run(*argv: str) -> Ran:
    """A program to its end; `output` is all that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return Ran(process.returncode or 0, output.decode(errors="replace"))


async def output_of(*argv: str) -> str:
    ran = await run(*argv)
    assert ran.status == 0, f"{' '.join(argv)} ended with {ran.status}: {ran.output}"
    return ran.output


async def nodes_of(server_id: str) -> list[str]:
    """The containers on this machine that are a server's nodes."""
    label = f"label=deployerp.server={server_id}"
    return (await output_of("docker", "ps", "--all", "--filter", label, "--format", "{{.Names}}")).split()


async def left_of_server(server_id: str) -> list[str]:
    """Containers and volumes on this machine that belong to a server."""
    label = f"label=deployerp.server={server_id}"
    volumes = await output_of("docker", "volume", "ls", "--filter", label, "--format", "{{.Name}}")
    return sorted(await nodes_of(server_id) + volumes.split())


async def on_node(node: str) -> set[str]:
    """Everything in a node's engine, labelled or not: `container x`, `network y`, `volume z`."""
    script = "\n".join(f"docker {' '.join(_quoted(each))} | sed 's/^/{kind} /'" for kind, each in _LISTS)
    return set((await output_of("docker", "exec", node, "sh", "-c", script)).splitlines())


def _quoted(words: tuple[str, ...]) -> list[str]:
    return [f"'{word}'" for word in words]


async def labelled(node: str, instance_id: str) -> set[str]:
    """What carries an instance's label in a node's engine."""
    label = f"label=deployerp.instance={instance_id}"
    script = "\n".join(
        f"docker {' '.join(_quoted((*each, '--filter', label)))} | sed 's/^/{kind} /'"
        for kind, each in _LISTS
    )
    return set((await output_of("docker", "exec", node, "sh", "-c", script)).splitlines())


async def routes_of(node: str) -> str:
    """The configuration that a node's Caddy would come back with, as JSON text."""
    return await output_of(
        *("docker", "exec", node, "docker", "exec", "deployerp-caddy"),
        *("cat", "/config/caddy/autosave.json"),
    )


async def remove_servers(server_ids: list[str]) -> list[str]:
    """Removes by force what is left of servers, for the end of a session; what there was."""
    left = [name for server_id in server_ids for name in await left_of_server(server_id)]
    for server_id in server_ids:
        for node in await nodes_of(server_id):
            await run("docker", "rm", "--force", "--volumes", node)
        for volume in await left_of_server(server_id):
            await run("docker", "volume", "rm", "--force", volume)
    return left
