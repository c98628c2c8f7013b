"""The folders of forwarded sockets, of processes that end and of those that are killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROCESS = """
from deployerp.drivers.server.local_sockets import socket_folder
print(socket_folder(), flush=True)
input()
"""


@contextmanager
def process(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """One that has a folder, and the folder."""
    command = [sys.executable, "-c", PROCESS]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        yield started, Path(started.stdout.readline().strip())


@pytest.mark.fault("24")
def test_what_killed_processes_leave_is_removed_by_the_next(tmp_path: Path) -> None:
    with process(tmp_path) as (killed, abandoned), process(tmp_path) as (_, in_use):
        (abandoned / "socket").touch()
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        assert abandoned.exists()
        with process(tmp_path) as (_, another):
            assert sorted(tmp_path.iterdir()) == sorted([in_use, another])
    assert list(tmp_path.iterdir()) == []
