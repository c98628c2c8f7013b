"""Finding, starting and installing an engine: real processes, stand-ins for dockerd and apt-get on PATH."""

import asyncio
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployerp.core.errors import CommandFailed, EngineError, Unavailable
from deployerp.embedded.local_engine import (
    EngineOrigin,
    Machine,
    ensure_engine,
    exclusive,
    forget_stale_pids,
    install_packages,
    run,
)

DOCKERD = """#!{python}
import http.server, os, socketserver
open("{directory}/starts", "a").write("x")
class Version(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{{"Version": "1", "ApiVersion": "1.41"}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "socket"
server = socketserver.ThreadingUnixStreamServer("{directory}/docker.sock", Version)
open("{directory}/pid", "w").write(str(os.getpid()))
server.serve_forever()
"""
# What the package would put on PATH, and what apt-get was told.
APT = """#!/bin/sh
echo "$DEBIAN_FRONTEND $*" >> "{directory}/apt.log"
case "$*" in *install*) mv "{directory}/dockerd" "{directory}/bin/dockerd" ;; esac
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of its own: PATH holds `bin` and what a minimal system has, but no dockerd."""
    (tmp_path / "bin").mkdir()
    system = tmp_path / "system"
    system.mkdir()
    for program in ("setsid", "sh", "mv", "sleep", "env"):
        (system / program).symlink_to(f"/usr/bin/{program}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{system}")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    (tmp_path / "os-release").write_text('ID=derived\nID_LIKE="ubuntu debian"\n')
    yield tmp_path
    pid = tmp_path / "pid"
    if pid.exists():
        os.kill(int(pid.read_text()), 9)


@pytest.fixture
def machine(directory: Path) -> Machine:
    return Machine(
        socket=directory / "docker.sock",
        os_release=directory / "os-release",
        systemd=directory / "systemd",
        root=True,
        start_seconds=15,
    )


@pytest.fixture
def said() -> list[str]:
    return []


def program(path: Path, text: str, directory: Path) -> None:
    path.write_text(text.format(python=sys.executable, directory=directory))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def without_root(machine: Machine) -> Machine:
    return Machine(machine.socket, machine.os_release, machine.systemd, root=False)


async def test_the_engine_of_this_machine_is_found(tmp_path: Path, said: list[str]) -> None:
    assert await ensure_engine(said.append, tmp_path) is EngineOrigin.RUNNING
    assert said == []


async def test_an_engine_that_does_not_run_is_started_and_outlives_us(
    directory: Path, machine: Machine, said: list[str]
) -> None:
    program(directory / "bin" / "dockerd", DOCKERD, directory)
    assert await ensure_engine(said.append, directory, machine) is EngineOrigin.STARTED
    assert said == ["Starting the Docker engine."]
    pid = int((directory / "pid").read_text())
    assert os.getsid(pid) != os.getsid(0)
    assert await ensure_engine(said.append, directory, machine) is EngineOrigin.RUNNING


async def test_two_at_once_start_one_engine(directory: Path, machine: Machine, said: list[str]) -> None:
    program(directory / "bin" / "dockerd", DOCKERD, directory)
    origins = await asyncio.gather(*(ensure_engine(said.append, directory, machine) for _ in range(3)))
    assert sorted(origins) == ["running", "running", "started"]
    assert (directory / "starts").read_text() == "x"


async def test_a_missing_engine_is_installed_as_root_on_debian(
    directory: Path, machine: Machine, said: list[str]
) -> None:
    program(directory / "dockerd", DOCKERD, directory)
    program(directory / "bin" / "apt-get", APT, directory)
    assert await ensure_engine(said.append, directory, machine) is EngineOrigin.INSTALLED
    update, install = (directory / "apt.log").read_text().splitlines()
    assert update.startswith("noninteractive ")
    assert update.endswith(" update")
    assert "install -y --no-install-recommends docker.io iptables" in install
    assert "docker.io" in said[0]


async def test_systemd_starts_it_where_systemd_runs(
    directory: Path, machine: Machine, said: list[str]
) -> None:
    machine.systemd.mkdir()
    program(directory / "bin" / "dockerd", DOCKERD, directory)
    program(
        directory / "bin" / "systemctl",
        '#!/bin/sh\necho "$*" > "{directory}/systemctl.log"\nsetsid --fork dockerd > /dev/null 2>&1\n',
        directory,
    )
    assert await ensure_engine(said.append, directory, machine) is EngineOrigin.STARTED
    assert (directory / "systemctl.log").read_text() == "start docker\n"


async def test_an_engine_that_dies_is_reported_with_its_log(
    directory: Path, machine: Machine, said: list[str]
) -> None:
    program(directory / "bin" / "dockerd", "#!/bin/sh\necho no cgroups here\n", directory)
    impatient = Machine(machine.socket, machine.os_release, machine.systemd, root=True, start_seconds=0.5)
    with pytest.raises(EngineError, match=r"see .*dockerd\.log"):
        await ensure_engine(said.append, directory, impatient)
    assert (directory / "dockerd.log").read_text() == "no cgroups here\n"


async def test_without_root_the_message_says_what_to_install(
    directory: Path, machine: Machine, said: list[str]
) -> None:
    with pytest.raises(Unavailable, match=r"apt-get install docker\.io"):
        await ensure_engine(said.append, directory, without_root(machine))
    program(directory / "bin" / "dockerd", DOCKERD, directory)
    with pytest.raises(Unavailable, match="systemctl start docker"):
        await ensure_engine(said.append, directory, without_root(machine))
    assert not (directory / "starts").exists()


async def test_another_distribution_is_told_what_to_install(
    directory: Path, machine: Machine, said: list[str]
) -> None:
    machine.os_release.write_text("ID=fedora\n")
    with pytest.raises(Unavailable, match=r"docker\.io"):
        await ensure_engine(said.append, directory, machine)
    with pytest.raises(Unavailable, match="debootstrap"):
        await install_packages("debootstrap", machine=machine)


async def test_an_engine_elsewhere_is_not_ours_to_start(
    directory: Path, machine: Machine, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(directory / "bin" / "dockerd", DOCKERD, directory)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{directory / 'elsewhere.sock'}")
    with pytest.raises(Unavailable, match="DOCKER_HOST"):
        await ensure_engine(said.append, directory, machine)
    assert not (directory / "starts").exists()


async def test_a_failed_command_shows_the_end_of_its_output() -> None:
    with pytest.raises(CommandFailed, match="status 3: last words") as failed:
        await run("sh", "-c", "echo first; echo last words >&2; exit 3")
    assert failed.value.details["output"] == ["first", "last words"]


async def test_a_cancelled_command_takes_its_children_along(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    running = asyncio.create_task(run("sh", "-c", f"sleep 60 & echo $! > {pid}; wait"))
    await until(lambda: pid.exists() and pid.read_text() != "")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not alive(int(pid.read_text())))


async def test_a_lock_is_held_by_one_task_at_a_time(tmp_path: Path) -> None:
    inside: list[str] = []

    async def work() -> None:
        async with exclusive(tmp_path / "a" / "lock"):
            inside.append("in")
            assert inside.count("in") - inside.count("out") == 1
            await asyncio.sleep(0.02)
            inside.append("out")

    await asyncio.gather(*(work() for _ in range(4)))
    assert inside == ["in", "out"] * 4


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("process", "kept"), [(None, False), ("odoo", False), ("dockerd", True)])
def test_what_a_killed_engine_noted_of_itself_does_not_keep_the_next_from_starting(
    tmp_path: Path, process: str | None, kept: bool
) -> None:
    (tmp_path / "docker.pid").write_text("4711")
    if process is not None:
        (tmp_path / "4711").mkdir()
        (tmp_path / "4711" / "comm").write_text(f"{process}\n")
    forget_stale_pids(tmp_path, tmp_path)
    assert (tmp_path / "docker.pid").exists() is kept
