"""A real sshd on loopback and a tiny real image, shared by the tests of the drivers."""

import getpass
import io
import os
import shutil
import socket
import subprocess
import tarfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deployerp.drivers.server.host import generate_key_pair
from deployerp.drivers.server.ssh_login import HostTarget

BUSYBOX_IMAGE = "deployerp-test/busybox:1"
APPLETS = ["cat", "chmod", "chown", "cp", "env", "head", "httpd", "id", "ls", "mkdir", "nc", "sh", "sleep"]
APPLETS += ["stat", "touch", "wc"]


@dataclass
class SSHServer:
    target: HostTarget
    process: subprocess.Popen[bytes]
    log: Path

    def with_key(self, private_key: str) -> HostTarget:
        return replace(self.target, private_key=private_key)

    def with_host_key(self, host_key: str) -> HostTarget:
        return replace(self.target, host_key=host_key)

    def logins(self) -> list[str]:
        """The lines of its log that tell of logins."""
        return [line for line in self.log.read_text().splitlines() if "Accepted publickey" in line]


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SSHServer]:
    with sshd_with(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@contextmanager
def sshd_with(directory: Path, *options: str) -> Iterator[SSHServer]:
    """A real sshd with further options; the first of two that set the same counts."""
    server = start_sshd(directory, *options)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(10)


def start_sshd(directory: Path, *options: str) -> SSHServer:
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    assert Path(program).exists(), "install openssh-server: these tests talk to a real sshd"
    ours, theirs = generate_key_pair("client"), generate_key_pair("host")
    host_key, authorized, log = (directory / name for name in ("host_key", "authorized_keys", "log"))
    host_key.touch(mode=0o600)
    host_key.write_text(theirs.private)
    authorized.write_text(ours.public + "\n")
    port = free_port()
    config = directory / "sshd_config"
    config.write_text(
        "".join(f"{option}\n" for option in options)
        + f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {authorized}\n"
        f"PidFile {directory / 'pid'}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nLogLevel VERBOSE\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([program, "-D", "-f", str(config), "-E", str(log)])
    wait_for_port(port, process, log)
    target = HostTarget("127.0.0.1", port, getpass.getuser(), ours.private, theirs.public)
    return SSHServer(target, process, log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        assert process.poll() is None, f"sshd ended: {log.read_text()}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "sshd does not listen"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def busybox() -> str:
    """An image of 2 MB with a shell, made from the distribution's static busybox."""
    if subprocess.run(["docker", "image", "inspect", BUSYBOX_IMAGE], capture_output=True).returncode == 0:
        return BUSYBOX_IMAGE
    binary = shutil.which("busybox")
    assert binary, "install busybox-static: the tests of the engine run it in containers"
    root = io.BytesIO()
    with tarfile.open(fileobj=root, mode="w") as tar:
        for directory in ("bin", "etc", "tmp"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(os.path.realpath(binary), "bin/busybox")
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    subprocess.run(
        ["docker", "import", "--change", "ENV PATH=/bin", "-", BUSYBOX_IMAGE],
        input=root.getvalue(),
        check=True,
        capture_output=True,
    )
    return BUSYBOX_IMAGE


@pytest.fixture
def label() -> Iterator[dict[str, str]]:
    """A label of this test alone; what still carries it afterwards is removed."""
    value = uuid.uuid4().hex[:12]
    yield {"deployerp.test": value}
    selected = f"label=deployerp.test={value}"
    for listing, removal in (
        (["ps", "-aq"], ["rm", "-fv"]),
        (["network", "ls", "-q"], ["network", "rm"]),
        (["volume", "ls", "-q"], ["volume", "rm"]),
    ):
        found = subprocess.run(
            ["docker", *listing, "--filter", selected], check=True, capture_output=True, text=True
        ).stdout.split()
        if found:
            subprocess.run(["docker", *removal, *found], check=True, capture_output=True)
