"""A PostgreSQL cluster of a bench's own, as durable as one in production."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deployerp.core.errors import Unavailable

# Everything else is as it comes: what is committed is on the disk.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # The fleet fits, and no checkpoint falls into a measurement.
    "shared_buffers": "2GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    # It would run beside the one and not beside the other.
    "autovacuum": "off",
}
_READY_SECONDS = 30


@dataclass(frozen=True)
class Cluster:
    """Where it answers, and the process whose children do the work; the superuser is `postgres`."""

    port: int
    pid: int

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def url(self) -> str:
        """The same for SQLAlchemy."""
        return self.dsn.replace("postgresql:", "postgresql+asyncpg:")


@asynccontextmanager
async def cluster(home: Path) -> AsyncIterator[Cluster]:
    """Runs a new cluster in `home`; it ends with the block, or with this process. Raises `Unavailable`."""
    programs, as_user = _programs(), _as_user(home)
    data, log, port = home / "data", home / "log", _free_port()
    options = [f"--{name}={value}" for name, value in {**_SETTINGS, "port": port}.items()]
    initdb = [str(programs / "initdb"), "--auth=trust", "--username=postgres", "--encoding=UTF8"]
    if await (await _start([*as_user, *initdb, str(data)], log)).wait() != 0:
        raise Unavailable(f"PostgreSQL's data could not be made: {log} tells why.")
    process = await _start([*as_user, str(programs / "postgres"), "-D", str(data), *options], log)
    try:
        await _until_ready(programs / "pg_isready", process, port, log)
        yield Cluster(port, process.pid)
    finally:
        if process.returncode is None:
            # Its data is thrown away: nothing is to be written out.
            process.send_signal(signal.SIGQUIT)
            await process.wait()


def _programs() -> Path:
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


def _as_user(home: Path) -> list[str]:
    """How to run a program that owns `home` and ends with this process."""
    home.mkdir(mode=0o755)
    command = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root, and its own user must be able to walk to its data.
        shutil.chown(home, user="postgres")
        command += [f"--reuid={pwd.getpwnam('postgres').pw_uid}", "--clear-groups"]
    return command


async def _start(command: Sequence[str], log: Path) -> asyncio.subprocess.Process:
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is ours to handle: it ends last.
            start_new_session=True,
        )


async def _until_ready(pg_isready: Path, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    ask = [str(pg_isready), "--quiet", "--host=127.0.0.1", f"--port={port}"]
    while await (await _start(ask, log)).wait() != 0:
        if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
            raise Unavailable(f"PostgreSQL did not start: {log} tells why.")
        await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
