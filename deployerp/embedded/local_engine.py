"""The Docker engine of the machine that the control plane runs on: found, started or installed."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from deployerp.core.errors import CommandFailed, EngineError, Unavailable
from deployerp.drivers.engine.connection import EngineConnection

Report = Callable[[str], None]

# AppArmor's parser: where the kernel enforces AppArmor, the engine starts no container without it.
_ENGINE_PACKAGES = ("docker.io", "iptables", "apparmor")
_DISTRIBUTIONS = frozenset({"debian", "ubuntu"})
_ANSWER_SECONDS = 5
_START_SECONDS = 60
_OUTPUT_LINES = 20


class EngineOrigin(StrEnum):
    """What it took to have an engine."""

    RUNNING = "running"
    STARTED = "started"
    INSTALLED = "installed"


@dataclass(frozen=True)
class Machine:
    """Where this machine keeps what the decision depends on."""

    socket: Path = Path("/var/run/docker.sock")
    os_release: Path = Path("/etc/os-release")
    systemd: Path = Path("/run/systemd/system")
    root: bool = field(default_factory=lambda: os.geteuid() == 0)
    start_seconds: float = _START_SECONDS

    @property
    def may_install(self) -> bool:
        """Root on a distribution whose packages we know."""
        if not self.root or not self.os_release.exists():
            return False
        release = _os_release(self.os_release)
        return bool({release.get("ID", ""), *release.get("ID_LIKE", "").split()} & _DISTRIBUTIONS)


def engine_url() -> str:
    """`DOCKER_HOST`, or the usual socket."""
    return os.environ.get("DOCKER_HOST") or f"unix://{Machine.socket}"


async def ensure_engine(report: Report, state: Path, machine: Machine | None = None) -> EngineOrigin:
    """Have a Docker engine that answers: the running one, else start it, else install it.

    `report` gets a line before each thing that takes long; `state` is a folder for the lock and the
    engine's log. Two processes may call it at once. Raises Unavailable saying what to install or
    start, CommandFailed when a package cannot be installed, EngineError when the engine does not start.
    """
    machine = machine or Machine()
    url = os.environ.get("DOCKER_HOST") or f"unix://{machine.socket}"
    if await _answers(url):
        return EngineOrigin.RUNNING
    if "DOCKER_HOST" in os.environ:
        raise Unavailable(f"No Docker engine answers at DOCKER_HOST={url}: start it, or unset DOCKER_HOST.")
    async with exclusive(state / "engine.lock"):
        # Whoever held the lock before may have done all of it.
        if await _answers(url):
            return EngineOrigin.RUNNING
        if not machine.root:
            raise Unavailable(_without_root(machine))
        origin = EngineOrigin.STARTED
        if shutil.which("dockerd") is None:
            report("No Docker engine on this machine: installing docker.io from the distribution's packages.")
            await install_packages(*_ENGINE_PACKAGES, machine=machine)
            origin = EngineOrigin.INSTALLED
        if not await _answers(url):  # the package may have started it
            report("Starting the Docker engine.")
            await _start(url, state / "dockerd.log", machine)
        return origin


async def install_packages(*packages: str, machine: Machine | None = None) -> None:
    """Install packages of the distribution without asking anything.

    Raises Unavailable when not root on Debian or Ubuntu, CommandFailed when apt-get fails.
    """
    machine = machine or Machine()
    if not machine.may_install:
        raise Unavailable(
            f"Install {', '.join(packages)} with this machine's package manager and try again; "
            f"as root on Debian or Ubuntu it is done for you (apt-get install {' '.join(packages)})."
        )
    apt = ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    await run(*apt, "update", environment=environment)
    await run(*apt, "install", "-y", "--no-install-recommends", *packages, environment=environment)


async def run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a command of this machine to its end; cancelling ends it and its children.

    Gives what it wrote, errors included. Raises CommandFailed with the end of its output in `details`.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await process.wait()
        raise
    text = output.decode(errors="replace")
    if process.returncode != 0:
        tail = text.splitlines()[-_OUTPUT_LINES:]
        last = tail[-1] if tail else "it wrote nothing"
        raise CommandFailed(
            f"{Path(command[0]).name} ended with status {process.returncode}: {last}",
            details={"command": list(command), "output": tail},
        )
    return text


@contextlib.asynccontextmanager
async def exclusive(lock: Path) -> AsyncIterator[None]:
    """Hold a lock that only one task of one process of this machine holds at a time."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.2)
        yield


async def _answers(url: str) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS), EngineConnection(url) as engine:
            await engine.version()
    except (EngineError, TimeoutError):
        return False
    return True


async def _start(url: str, log: Path, machine: Machine) -> None:
    if machine.systemd.is_dir():
        await run("systemctl", "start", "docker")
    else:
        forget_stale_pids(machine.socket.parent, Path("/proc"))
        await _spawn(log)
    try:
        async with asyncio.timeout(machine.start_seconds):
            while not await _answers(url):
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        where = "journalctl -u docker" if machine.systemd.is_dir() else str(log)
        raise EngineError(
            f"The Docker engine does not answer {machine.start_seconds:.0f} s after its start: see {where}."
        ) from error


def forget_stale_pids(run: Path, proc: Path) -> None:
    """Remove what a killed engine noted of itself, where that process is gone or another by now.

    It would refuse to start, or wait for a containerd that is none, as long as anything has the number.
    """
    for note in (run / "docker.pid", run / "docker" / "containerd" / "containerd.pid"):
        if not note.exists():
            continue
        name = proc / note.read_text().strip() / "comm"
        if not name.exists() or name.read_text().strip() not in ("dockerd", "containerd"):
            note.unlink()


async def _spawn(log: Path) -> None:
    """Start dockerd as a daemon of its own: it outlives this process, whose children are waited for."""
    with log.open("ab") as output:
        setsid = await asyncio.create_subprocess_exec(
            "setsid",
            "--fork",
            "dockerd",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    await setsid.wait()


def _without_root(machine: Machine) -> str:
    if machine.socket.exists() and not os.access(machine.socket, os.W_OK):
        return (
            f"You may not use the Docker engine at {machine.socket}: join the group docker, or run as root."
        )
    if shutil.which("dockerd") is not None:
        return "The Docker engine does not run: start it (sudo systemctl start docker), or run as root."
    return (
        "No Docker engine on this machine: install one (Debian and Ubuntu: sudo apt-get install docker.io; "
        "elsewhere: Docker Desktop or Podman's Docker-compatible service), or run as root."
    )


def _os_release(path: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, _, value in lines}
