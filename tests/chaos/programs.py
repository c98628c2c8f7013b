"""The programs of a control plane, each of which can be killed, frozen and started again."""

import asyncio
import os
import pwd
import shutil
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from deployerp.core.errors import Unavailable
from deployerp.core.secrets import new_encryption_key
from deployerp.core.settings import Settings
from deployerp.embedded import control_plane
from tests.conftest import free_port

_READY_SECONDS = 60
_STOP_SECONDS = 20
_START_PAUSE = 0.5


@dataclass
class Program:
    """A program that is started with the same command each time."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    process: Process | None = None
    died: list[int] = field(default_factory=list)
    """Exit statuses of those that ended although nobody had asked them to."""

    async def start(self) -> None:
        """Starts it and waits until it listens, if it does. Raises `Unavailable`."""
        deadline = asyncio.get_running_loop().time() + _READY_SECONDS
        while True:
            await self._spawn()
            if await self._is_ready():
                return
            # PostgreSQL refuses to start as long as a process of the one before it is there.
            await self.kill(asked=True)
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"{self.name} did not start: {self.log} tells why.")
            await asyncio.sleep(_START_PAUSE)

    async def kill(self, *, asked: bool = False) -> None:
        """Ends it and its children without any notice."""
        self._note_death(asked)
        if self.process is not None:
            self._signal(signal.SIGKILL)
            await self.process.wait()
            self.process = None

    async def stop(self) -> None:
        """Ends it as an operator does."""
        self._note_death(asked=False)
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
        await self.kill(asked=True)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def revive(self) -> None:
        """Makes it run, whatever was done to it."""
        self.thaw()
        self._note_death(asked=False)
        if self.process is None or self.process.returncode is not None:
            await self.start()

    def _note_death(self, asked: bool) -> None:
        if not asked and self.process is not None and self.process.returncode is not None:
            self.died.append(self.process.returncode)

    async def _spawn(self) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", *self.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | dict(self.environment),
                # Ctrl-C is ours: what was made is removed with their help, so they end last.
                start_new_session=True,
            )

    async def _is_ready(self) -> bool:
        assert self.process is not None
        if self.port is None:
            return True
        deadline = asyncio.get_running_loop().time() + _READY_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            if self.process.returncode is not None:
                return False
            if await _listens(self.port):
                return True
            await asyncio.sleep(0.1)
        return False

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        # The parent first, so that it starts no further children meanwhile.
        for pid in (self.process.pid, *_descendants(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, ahead = [], [pid]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


async def _listens(port: int) -> bool:
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


@dataclass
class Plane:
    """A control plane: every program of it, its settings and where its API answers."""

    settings: Settings
    programs: dict[str, Program]
    api_port: int

    async def revive(self) -> None:
        for program in self.programs.values():
            await program.revive()

    @property
    def logs(self) -> list[Path]:
        return [program.log for program in self.programs.values()]


@asynccontextmanager
async def running(
    home: Path, seed: int, prepare: Callable[[Settings], Awaitable[None]]
) -> AsyncIterator[Plane]:
    """A control plane of its own in `home`; `prepare` is given its settings before API and workers start."""
    ports = control_plane.Ports.free()
    postgres = await _postgres(home)
    settings = Settings.model_validate(
        {
            "home": home,
            "database_url": f"postgresql+asyncpg://postgres@127.0.0.1:{postgres.port}/postgres",
            "temporal_address": f"127.0.0.1:{ports.temporal}",
            "encryption_keys": [new_encryption_key()],
            "sweep_seconds": 2,
            "allowed_networks": ["127.0.0.0/8"],
            "address_requests_per_minute": 1_000_000,
            # What a receiver missed while workers were frozen comes before the end of the run.
            "webhook_retry_seconds": [1, 2, 5, 5, 10, 10, 10, 10, 10, 10],
            "log_level": "DEBUG",
        }
    )
    api_port = free_port()
    ours, environment = (sys.executable, "-m"), control_plane.environment_of(settings)
    cli = (*ours, "deployerp.cli")
    programs = [
        postgres,
        Program(
            "temporal",
            control_plane._temporal_command(settings, ports),
            home / "temporal.log",
            port=ports.temporal,
        ),
        Program("api", (*cli, "serve", "--port", str(api_port)), home / "api.log", environment, api_port),
        Program("worker", (*cli, "worker"), home / "worker.log", environment),
        # The same, but its steps are late or fail now and then.
        Program(
            "faulty-worker", (*ours, "tests.chaos.worker", str(seed)), home / "faulty-worker.log", environment
        ),
    ]
    plane = Plane(settings, {program.name: program for program in programs}, api_port)
    try:
        for name in ("postgres", "temporal"):
            await plane.programs[name].start()
        await prepare(settings)
        for name in ("api", "worker", "faulty-worker"):
            await plane.programs[name].start()
        yield plane
    finally:
        for program in reversed(programs):
            program.thaw()
            await program.stop()


def _postgres_programs() -> Path:
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


async def _postgres(home: Path) -> Program:
    """PostgreSQL with a new cluster, as durable as it comes. Raises `Unavailable`."""
    programs, folder, as_user = _postgres_programs(), home / "postgres", []
    folder.mkdir(mode=0o755)
    if os.geteuid() == 0:
        # It refuses to run as root, and its own user must be able to walk to its data.
        shutil.chown(folder, user="postgres")
        # Its own notice of a parent's death: that of whoever started it is lost when the user changes.
        as_user = [
            "setpriv",
            "--pdeathsig",
            "QUIT",
            f"--reuid={pwd.getpwnam('postgres').pw_uid}",
            "--clear-groups",
        ]
    data, log, port = folder / "data", home / "postgres.log", free_port()
    initdb = (str(programs / "initdb"), "--auth=trust", "--username=postgres", "--encoding=UTF8", str(data))
    with log.open("ab") as output:
        made = await asyncio.create_subprocess_exec(*as_user, *initdb, stdout=output, stderr=output)
    if await made.wait() != 0:
        raise Unavailable(f"PostgreSQL's data could not be made: {log} tells why.")
    options = (f"--port={port}", "--listen_addresses=127.0.0.1", "--unix_socket_directories=")
    return Program(
        "postgres", (*as_user, str(programs / "postgres"), "-D", str(data), *options), log, port=port
    )
