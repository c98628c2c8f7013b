"""A deploy without a control plane: the same commands for Docker and Odoo, typed on the server."""

import asyncio
import base64
import json
import shlex
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

from deployerp.activities.steps.instance_parts import Images, Parts, Volumes
from deployerp.core.errors import CommandFailed
from deployerp.core.secrets import new_password
from deployerp.drivers import caddy
from deployerp.drivers.engine.containers import ContainerSpec, archive
from deployerp.drivers.odoo import odoo

# The interval is that of the control plane, and the loop runs on the server: nothing is faster by hand.
_UNTIL_OPEN = """
until (
  exec 3<>"/dev/tcp/$1/$2" && printf 'GET %s HTTP/1.0\\r\\nHost: %s\\r\\n\\r\\n' "$3" "$4" >&3 &&
  read -r -u 3 _ status _ && [ "$status" = 200 ] && cat <&3 >/dev/null
) 2>/dev/null; do sleep 0.25; done
"""
_UNTIL_POSTGRES = 'until docker exec "$1" pg_isready --quiet --host 127.0.0.1; do sleep 0.25; done'
# The server has no curl, and Caddy's admin API is on a socket.
_TELL_CADDY = """
use IO::Socket::UNIX;
my $caddy = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "no socket";
my $request = do { local $/; <STDIN> };
print $caddy $request; $caddy->flush; my $answer = <$caddy>;
print $answer; exit($answer =~ m{^HTTP/1.[01] 200} ? 0 : 1);
"""
_PATIENCE = ("timeout", "60")


class Shell:
    """A shell on a node of the `docker` provider; one for all commands, since nobody logs in for each."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ends = f"-- {uuid4().hex}"

    @classmethod
    @asynccontextmanager
    async def on(cls, node: str) -> AsyncIterator["Shell"]:
        process = await asyncio.create_subprocess_exec(
            *("docker", "exec", "--interactive", node, "bash"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield cls(process)
        finally:
            # It ends with its input.
            await process.communicate(b"")

    async def run(self, command: Sequence[str], input: bytes | None = None) -> str:
        """What a command prints, its errors too. Raises `CommandFailed`."""
        into, out_of = self._process.stdin, self._process.stdout
        assert into is not None  # noqa: S101
        assert out_of is not None  # noqa: S101
        fed = f"base64 -d <<<'{base64.b64encode(input or b'').decode()}'"
        into.write(f"{fed} | {shlex.join(command)} 2>&1; printf '\\n%s %s\\n' '{self._ends}' $?\n".encode())
        lines: list[str] = []
        while line := (await out_of.readline()).decode():
            if line.startswith(self._ends):
                break
            lines.append(line)
        output = "".join(lines).strip()
        if line != f"{self._ends} 0\n":
            raise CommandFailed(f"`{shlex.join(command[:3])}` by hand failed: {output[-500:]}")
        return output


@dataclass
class ByHand:
    """Deploys one instance on a node of the `docker` provider; `seconds` has what each step took.

    The steps have the names of the control plane's own, and make the same containers.
    """

    shell: Shell
    images: Images
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = f"by-hand-{uuid4().hex[:8]}"
        volumes = Volumes(f"{name}-pgdata", f"{name}-filestore")
        capacity = odoo.CAPACITIES["development"]
        self.parts = Parts(name, {"bench.by-hand": name}, self.images, volumes, capacity)
        self.hostname = f"{name}.localhost"

    async def deploy(self) -> None:
        """Raises `CommandFailed`."""
        parts = self.parts
        passwords = (new_password(), new_password(), new_password())
        prepared = await self._prepared()
        async with self._step("create_network"):
            await self._type("docker", "network", "create", *_labels(parts), parts.network)
        async with self._step("create_volumes"):
            for source, target in prepared.items():
                await self._type("docker", "volume", "create", *_labels(parts), target)
                mounts = (f"--volume={source}:/source", f"--volume={target}:/target", "--user=0")
                copy = ("--entrypoint=cp", parts.images.postgres, "-a", "/source/.", "/target/")
                await self._type("docker", "run", "--rm", *mounts, *copy)
        async with self._step("start_postgres"):
            await self._create(parts.postgres_spec())
            await self._type("docker", "start", parts.postgres)
            await self._type("bash", "-c", _UNTIL_POSTGRES, "bash", parts.postgres)
        async with self._step("personalise_database"):
            await self._psql("postgres", odoo.set_passwords_sql(passwords[0]))
            await self._psql(odoo.DATABASE, odoo.personalise_sql(passwords[1], f"http://{self.hostname}"))
        async with self._step("start_odoo"):
            await self._create(
                parts.odoo_spec(odoo.Configuration(parts.capacity, passwords[0], passwords[2]))
            )
            await self._type("docker", "start", parts.odoo)
        async with self._step("wait_for_odoo"):
            address = await self._type("docker", "inspect", "--format", _ADDRESS, parts.odoo)
            await self._until_open(address, odoo.HTTP_PORT, "/web/health?db_server_status=1", "odoo")
        async with self._step("create_route"):
            await self._type("docker", "network", "connect", parts.network, caddy.NAME)
            await self._tell_caddy("PUT", "/config/apps/http/servers/http/routes/0", self._route())
        async with self._step("check_login"):
            await self._until_open("127.0.0.1", 80, "/web/login", self.hostname)

    async def remove(self) -> None:
        parts = self.parts
        await self._tell_caddy("DELETE", f"/id/route-{parts.prefix}")
        await self._type("docker", "rm", "--force", "--volumes", parts.odoo, parts.postgres)
        await self._type("docker", "network", "disconnect", parts.network, caddy.NAME)
        await self._type("docker", "network", "rm", parts.network)
        await self._type("docker", "volume", "rm", parts.volumes.pgdata, parts.volumes.filestore)

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    async def _prepared(self) -> dict[str, str]:
        """The volumes to copy, each with its copy's name; made when the first instance was deployed."""
        listed = await self._type("docker", "volume", "ls", "--quiet", "--filter=label=deployerp.prepared")
        copies = {"-pgdata": self.parts.volumes.pgdata, "-filestore": self.parts.volumes.filestore}
        return {
            name: copy for name in listed.split() for suffix, copy in copies.items() if name.endswith(suffix)
        }

    async def _create(self, spec: ContainerSpec) -> None:
        await self._type("docker", "create", *_arguments(spec))
        if spec.files:
            await self._type("docker", "cp", "-", f"{spec.name}:/", input=archive(spec.files))

    async def _psql(self, database: str, sql: str) -> None:
        psql = ("psql", "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--dbname={database}", "--file=-")
        execute = ("docker", "exec", "--interactive", "--user=postgres", self.parts.postgres)
        await self._type(*execute, *psql, input=sql.encode())

    async def _until_open(self, address: str, port: int, path: str, host: str) -> None:
        await self._type("bash", "-c", _UNTIL_OPEN, "bash", address, str(port), path, host)

    async def _tell_caddy(self, method: str, path: str, body: object = None) -> None:
        content = json.dumps(body) if body is not None else ""
        head = f"{method} {path} HTTP/1.0\r\nHost: caddy\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(content)}\r\n\r\n{content}"
        await self._type("perl", "-e", _TELL_CADDY, caddy.ADMIN_SOCKET, input=request.encode())

    def _route(self) -> dict[str, object]:
        upstream = f"{self.parts.odoo}:{odoo.HTTP_PORT}"
        return caddy.Route(self.parts.prefix, [self.hostname], upstream, https=False).config()

    async def _type(self, *command: str, input: bytes | None = None) -> str:
        return await self.shell.run(command, input)


_ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"


def _labels(parts: Parts) -> list[str]:
    return [f"--label={name}={value}" for name, value in parts.labels.items()]


def _arguments(spec: ContainerSpec) -> list[str]:
    """A specification as the arguments of `docker create`."""
    return [
        f"--name={spec.name}",
        *(f"--label={name}={value}" for name, value in spec.labels.items()),
        *(f"--mount=type=volume,source={source},target={path}" for source, path in spec.volumes.items()),
        *(f"--network-alias={alias}" for alias in spec.aliases),
        f"--network={spec.network}",
        f"--restart={spec.restart_policy}",
        f"--memory={spec.memory_bytes or 0}",
        f"--stop-timeout={spec.stop_timeout}",
        *(f"--entrypoint={program}" for program in spec.entrypoint or ()),
        *("--log-opt=max-size=10m", "--log-opt=max-file=3"),
        spec.image,
        *(spec.command or ()),
    ]
