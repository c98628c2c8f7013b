"""A lean closed loop of requests: each connection sends the next one when the last is answered.

Requests are bytes that were made before, so that the one who asks is not what is measured.
"""

import asyncio
import gc
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast
from uuid import uuid4

import uvloop

from deployerp.core.errors import Unavailable

CONNECTIONS = 8
# Where a request has this, each that is sent has something else of the same length.
UNIQUE = b"{unique-name}"
_WIDTH = len(UNIQUE)
_WARM_UP_SECONDS = 0.5
_PATIENCE_SECONDS = 30
_HEAD_END = b"\r\n\r\n"
_TICKS = os.sysconf("SC_CLK_TCK")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What is asked for, of whom, for how long; every answer must have the status."""

    port: int
    requests: Sequence[bytes]
    status: int
    seconds: float


@dataclass(frozen=True)
class Answers:
    """`sorted_seconds` are those of the window; `all_requests` counts the warm-up and the rest too.

    `cpu_seconds` is what the one who asks has spent in the window.
    """

    sorted_seconds: list[float]
    window: float
    all_requests: int
    cpu_seconds: float


class _Unanswered(Exception):
    """The first answer that is not what it should be."""


class _Window:
    """What all connections of one load share."""

    def __init__(self, load: Load) -> None:
        self.status = b"%d" % load.status
        self.begins = time.perf_counter() + _WARM_UP_SECONDS
        self.ends = self.begins + load.seconds
        self.seconds: list[float] = []
        self.requests = 0
        self._run = uuid4().hex[:4].encode()
        self._numbers = count()

    def unique(self) -> bytes:
        return b"x%s%0*x" % (self._run, _WIDTH - 5, next(self._numbers))


class _Connection(asyncio.Protocol):
    """Asks, reads the answer, asks again, until the window ends."""

    def __init__(self, window: _Window, requests: Sequence[bytes]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._window = window
        self._requests = requests
        self._next = 0
        self._varies = UNIQUE in requests[0]
        self._buffer = b""
        self._missing = 0
        self._asked = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._buffer += data
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                return
            length = _LENGTH.search(self._buffer, 0, end + 2)
            if length is None or self._buffer[9:12] != self._window.status:
                self._fail(self._buffer.decode(errors="replace"))
                return
            self._missing = int(length[1]) - (len(self._buffer) - end - len(_HEAD_END))
            self._buffer = b""
        if self._missing == 0:
            self._answered()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"The connection was closed: {error}")

    def _answered(self) -> None:
        now, window = time.perf_counter(), self._window
        window.requests += 1
        if window.begins <= now <= window.ends:
            window.seconds.append(now - self._asked)
        if now < window.ends:
            self._ask()
        elif not self.ended.done():
            self.ended.set_result(None)

    def _ask(self) -> None:
        request = self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        if self._varies:
            request = request.replace(UNIQUE, self._window.unique())
        self._asked = time.perf_counter()
        self._transport.write(request)

    def _fail(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(_Unanswered(reason[:1000]))

    def close(self) -> None:
        self._transport.close()


def run(load: Load) -> Answers:
    """Asks for as long as the load says. Raises `Unavailable` with the first answer that is another."""
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(load))
    except (OSError, TimeoutError, _Unanswered) as error:
        raise Unavailable(f"Not answered with {load.status}: {error or 'nothing comes'}") from None
    finally:
        gc.enable()


async def _run(load: Load) -> Answers:
    loop, window = asyncio.get_running_loop(), _Window(load)
    requests = list(load.requests) * -(-CONNECTIONS // len(load.requests))
    connections = []
    for number in range(CONNECTIONS):
        share = requests[number::CONNECTIONS]
        _, connection = await loop.create_connection(
            lambda share=share: _Connection(window, share),  # type: ignore[misc]
            "127.0.0.1",
            load.port,
        )
        connections.append(connection)
    await asyncio.sleep(window.begins - time.perf_counter())
    spent = time.process_time()
    await asyncio.sleep(window.ends - time.perf_counter())
    spent = time.process_time() - spent
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await asyncio.gather(*(connection.ended for connection in connections))
    for connection in connections:
        connection.close()
    if not window.seconds:
        raise _Unanswered(f"nothing was answered within {load.seconds} s")
    return Answers(sorted(window.seconds), load.seconds, window.requests, spent)


def once(port: int, request: bytes) -> tuple[int, bytes]:
    """The status and the body of one answer. Raises `OSError` when nobody listens."""
    filled = request.replace(UNIQUE, b"x" + uuid4().hex[: _WIDTH - 1].encode())
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS) as connection:
        connection.sendall(filled.replace(_HEAD_END, b"\r\nConnection: close\r\n\r\n", 1))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(_HEAD_END)
    return int(head[9:12]), body


def cpu_seconds(pid: int) -> float:
    """What a process, its threads and its children have spent so far, those that have ended too."""
    spent, ended = 0, 0
    # What ends meanwhile is no longer there to be read: its parent's account of the ended has it.
    with suppress(OSError):
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ended = int(status[13]) + int(status[14])
        # In nanoseconds; the account above counts hundredths, which is coarse for many that do little.
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9 + ended / _TICKS + sum(map(cpu_seconds, children_of(pid)))


def machine_seconds() -> float:
    """What all processors have spent so far on anything, and what a hypervisor has taken from them."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(others)) / _TICKS


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def child(name: str) -> int:
    """The process of this one's children that runs the program. Raises `Unavailable`."""
    for pid in children_of(os.getpid()):
        if Path(f"/proc/{pid}/comm").read_text().strip() == name:
            return pid
    raise Unavailable(f"{name} does not run.")
