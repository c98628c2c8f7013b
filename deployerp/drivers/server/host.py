"""SSH to a server whose host key is known beforehand, and its sockets brought here."""

import asyncio
import contextlib
import re
import shlex
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from deployerp.core.errors import CommandFailed, HostForwardingForbidden
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.local_sockets import socket_folder
from deployerp.drivers.server.ssh_connection import SSHConnection, held_too_long
from deployerp.drivers.server.ssh_login import HostTarget, connection_lost, log_in, unreachable

ENGINE_SOCKET = "/var/run/docker.sock"

# Nothing listens there: what sshd answers tells whether it forwards at all.
_UNUSED_PORT = 1
# How many listening sockets of the server are tried before forwarding counts as forbidden.
_SOCKETS_TRIED = 10
_LOOK_SECONDS = 30
# A program in the output of ss: `users:(("nginx",pid=12,fd=6))`
_PROGRAM = re.compile(r'\("([^"]+)",pid=')
_LOCK_WAIT_SECONDS = 5
_FLOCK_TIME_IS_UP = 1
# What OpenSSH says where a connection has MaxSessions of them; the library has other words for a lost one.
_SESSION_REFUSED = "open failed"
# The kernel's flag and type of a stream socket that listens, in /proc/net/unix.
_LISTENING = ["00010000", "0001"]


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key pair in OpenSSH's text formats; `public` is one line."""

    private: str = field(repr=False)
    public: str


@dataclass(frozen=True)
class Completed:
    """How a command on the server ended and what it wrote."""

    exit_status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its standard output as text, without the white space around it."""
        return self.stdout.decode(errors="replace").strip()


def generate_key_pair(comment: str) -> KeyPair:
    """A new ed25519 key pair, for a server's identity or for ours."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    return KeyPair(
        private=key.export_private_key("openssh").decode(),
        public=key.export_public_key("openssh").decode().strip(),
    )


def public_key_of(private_key: str) -> str:
    """The public line of a private key in OpenSSH's format."""
    return asyncssh.import_private_key(private_key).export_public_key("openssh").decode().strip()


@contextlib.asynccontextmanager
async def connect(target: HostTarget, *, timeout: float = 10) -> AsyncIterator["Host"]:
    """A connection of its own to the server; everything opened through it is closed with it.

    Raises HostUnreachable, HostKeyMismatch (before anything but the key exchange was sent) and
    HostAuthenticationFailed. A server that dies meanwhile is noticed after 16 s.
    """
    connection = SSHConnection(target, await log_in(target, timeout))
    try:
        async with open_host(connection) as host:
            yield host
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def open_host(connection: SSHConnection) -> AsyncIterator["Host"]:
    """The server behind a connection that others may use too; what is opened here is closed at the end."""
    async with contextlib.AsyncExitStack() as stack:
        yield Host(connection, stack)


@dataclass(frozen=True)
class Disk:
    """A file system of the server, by where it is mounted."""

    path: str
    free_bytes: int
    size_bytes: int


class Host:
    """One server, connected."""

    def __init__(self, connection: SSHConnection, stack: contextlib.AsyncExitStack) -> None:
        self._shared = connection
        self._target = connection.target
        self._connection = connection.ssh
        self._stack = stack
        self._engine: Engine | None = None

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float,
        check: bool = True,
    ) -> Completed:
        """Run one command to its end, `input` as its whole standard input, for at most `timeout` seconds.

        It first waits for its turn, since several share the connection.

        Raises CommandFailed for a non-zero exit unless `check` is off, with the end of its standard error
        in `details.stderr`, and when time is up (the command may then go on running); HostUnreachable when
        the connection is lost.
        """
        command = _command_line(argv)
        # The library takes an empty input for none at all, and leaves the command waiting for it.
        options: dict[str, Any] = {"input": input} if input else {"stdin": asyncssh.DEVNULL}
        try:
            async with self._shared.commands, self._process(command, encoding=None, **options) as process:
                ended = await process.wait(timeout=timeout)
        except TimeoutError as error:
            raise CommandFailed(
                f"{argv[0]} on {self._target.address} was not done within {timeout:g} s.",
                details={"stderr": _tail(getattr(error, "stderr", None))},
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise connection_lost(self._target, "a command ran", error) from error
        if ended.exit_status is None and ended.exit_signal is None:
            raise connection_lost(self._target, "a command ran")
        # As shells do: a signal is no exit status, and must not look like success.
        status = 128 if ended.exit_status is None else ended.exit_status
        completed = Completed(status, _bytes(ended.stdout), _bytes(ended.stderr))
        if check and status != 0:
            raise CommandFailed(
                f"{argv[0]} on {self._target.address} ended with exit status {status}. "
                "See the end of its output in the details.",
                details={"exit_status": status, "stderr": _tail(completed.stderr)},
            )
        return completed

    async def disk_of(self, path: str) -> Disk:
        """The disk that holds a path, with what an ordinary user may still write."""
        columns = ["df", "--block-size=1", "--output=avail,size,target", "--", path]
        asked = await self.run(columns, timeout=20)
        free, size, mounted = asked.text.splitlines()[-1].split(maxsplit=2)
        return Disk(mounted, int(free), int(size))

    async def boot_id(self) -> str:
        """A text that changes whenever the server boots, be it a machine or a container."""
        # A container has the boot of its machine's kernel, and a first process of its own.
        read = await self.run(
            ["cat", "/proc/sys/kernel/random/boot_id", "/proc/1/stat"], timeout=_LOOK_SECONDS
        )
        kernel, _, first = read.text.partition("\n")
        # The start is the 22nd field; the second, a name in brackets, may hold anything.
        return f"{kernel} {first.rpartition(')')[2].split()[19]}"

    async def listening_programs(self, port: int) -> list[str]:
        """The names of the programs that listen on a TCP port; empty where the server does not tell."""
        argv = ["ss", "-H", "-l", "-t", "-n", "-p", f"sport = :{port}"]
        listed = await self.run(argv, timeout=_LOOK_SECONDS, check=False)
        return sorted(set(_PROGRAM.findall(listed.text)))

    async def check_forwarding(self) -> None:
        """Raises HostForwardingForbidden when the server's sshd does not forward what we need of it."""
        await self._check_ports()
        await self._check_sockets()

    async def forward_socket(self, remote_path: str) -> str:
        """A Unix socket here that leads to one on the server, until the connection is closed; its path.

        Raises HostForwardingForbidden. That nothing listens there shows when the socket is used.
        """
        if not await self._opens_socket(remote_path):
            await self.check_forwarding()
        return await self._forward(lambda path: self._connection.forward_local_path(path, remote_path))

    async def forward_port(self, remote_address: str, remote_port: int) -> str:
        """A Unix socket here that leads to a TCP port as the server sees it; its path.

        Raises HostForwardingForbidden. That nothing listens there shows when the socket is used.
        """
        await self._check_ports()
        return await self._forward(
            lambda path: self._connection.forward_local_path_to_port(path, remote_address, remote_port)
        )

    @contextlib.asynccontextmanager
    async def lock(self, name: str, *, timeout: float = 1800) -> AsyncIterator[None]:
        """Hold a lock of the server's, which a client that dies lets go of with its connection.

        Raises CommandFailed when others hold it for `timeout` seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        async with self._shared.turn(name, timeout), contextlib.AsyncExitStack() as stack:
            try:
                while not await self._try_lock(stack, name, min(deadline - loop.time(), _LOCK_WAIT_SECONDS)):
                    if loop.time() >= deadline:
                        raise held_too_long(name)
                yield
            except asyncssh.Error as error:
                raise connection_lost(self._target, f"its lock `{name}` was held", error) from error

    async def _try_lock(self, stack: contextlib.AsyncExitStack, name: str, seconds: float) -> bool:
        """Waits for the lock, and holds it until the end of `stack`; says whether it does."""
        # The lock lives as long as `cat`, and that as long as its input: this connection. A long wait would
        # go on on the server, and count as a session there, when nobody here waits any more.
        command = ["flock", "--wait", f"{max(seconds, 0.1):.1f}", f"/run/deployerp-{name}.lock"]
        holder = ["sh", "-c", "echo held && exec cat"]
        async with contextlib.AsyncExitStack() as tried:
            process = await tried.enter_async_context(self._process(_command_line(command + holder)))
            if await process.stdout.readline() == "held\n":
                stack.push_async_exit(tried.pop_all())
                return True
            ended = await process.wait()
        if ended.exit_status is None:
            raise connection_lost(self._target, f"its lock `{name}` was waited for")
        if ended.exit_status != _FLOCK_TIME_IS_UP:
            raise CommandFailed(
                f"flock on {self._target.address} ended with exit status {ended.exit_status}. "
                "See the end of its output in the details.",
                details={"exit_status": ended.exit_status, "stderr": str(ended.stderr or "").strip()},
            )
        return False

    @contextlib.asynccontextmanager
    async def _process(self, command: str, **options: Any) -> AsyncIterator[asyncssh.SSHClientProcess[Any]]:
        """A command on the server, whose channel is closed at the end."""
        try:
            process = await self._connection.create_process(command, **options)
        except asyncssh.ChannelOpenError as error:
            if error.reason != _SESSION_REFUSED:
                raise
            raise unreachable(
                f"The sshd of the server at {self._target.place} lets us run no more commands over one"
                " connection (MaxSessions): another connection is used at the next try.",
                error,
            ) from error
        try:
            yield process
        finally:
            # Without waiting: sshd keeps a channel until its command has ended.
            process.close()

    async def engine(self) -> Engine:
        """The server's Docker Engine, one for the whole connection and closed with it."""
        if self._engine is None:
            path = await self.forward_socket(ENGINE_SOCKET)
            self._engine = await self._stack.enter_async_context(Engine(f"unix://{path}"))
        return self._engine

    async def _forward(self, listen: Callable[[str], Awaitable[asyncssh.SSHListener]]) -> str:
        directory = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="", dir=socket_folder(), ignore_cleanup_errors=True)
        )
        path = str(Path(directory, "socket"))
        try:
            listener = await listen(path)
        except (asyncssh.Error, OSError) as error:
            raise connection_lost(self._target, "a socket was forwarded", error) from error
        self._stack.callback(listener.close)
        return path

    async def _check_ports(self) -> None:
        """Raises HostForwardingForbidden; that nothing listens on the port is no failure."""
        try:
            _, writer = await self._connection.open_connection("127.0.0.1", _UNUSED_PORT, encoding=None)
        except asyncssh.ChannelOpenError as error:
            if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise self._forbidden("TCP ports") from error
        except asyncssh.Error as error:
            raise connection_lost(self._target, "it was asked to forward a port", error) from error
        else:
            writer.close()

    async def _check_sockets(self) -> None:
        """Raises HostForwardingForbidden when sockets listen on the server and none can be reached.

        Of a Unix socket sshd says the same when it may not forward as when nothing listens.
        """
        listed = await self.run(["cat", "/proc/net/unix"], timeout=_LOOK_SECONDS, check=False)
        listening = _listening_sockets(listed.text)[:_SOCKETS_TRIED]
        for path in listening:
            if await self._opens_socket(path):
                return
        if listening:
            raise self._forbidden("Unix sockets")

    async def _opens_socket(self, path: str) -> bool:
        try:
            _, writer = await self._connection.open_unix_connection(path, encoding=None)
        except asyncssh.ChannelOpenError:
            return False
        except asyncssh.Error as error:
            raise connection_lost(self._target, "it was asked to forward a socket", error) from error
        writer.close()
        return True

    def _forbidden(self, what: str) -> HostForwardingForbidden:
        return HostForwardingForbidden(
            f"The sshd of the server at {self._target.place} does not forward {what} for user"
            f" {self._target.user}, and deployERP reaches Docker that way."
            " Set `AllowStreamLocalForwarding yes`, `AllowTcpForwarding yes` and `DisableForwarding no` in"
            " its sshd_config, allow forwarding for our key in authorized_keys, reload sshd and retry."
        )


def _command_line(argv: Sequence[str]) -> str:
    # SSH knows only command lines. This is the one place where they are made.
    return shlex.join(argv)


def _listening_sockets(listed: str) -> list[str]:
    """The paths of listening sockets in the text of /proc/net/unix, the engine's first."""
    rows = [line.split(maxsplit=7) for line in listed.splitlines()]
    paths = {row[7] for row in rows if len(row) == 8 and row[3:5] == _LISTENING and row[7].startswith("/")}
    return sorted(paths, key=lambda path: (path != ENGINE_SOCKET, path))


def _bytes(output: Any) -> bytes:
    return bytes(output or b"")


def _tail(output: Any, limit: int = 4000) -> str:
    return _bytes(output).decode(errors="replace").strip()[-limit:]
