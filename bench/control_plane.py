"""A control plane in processes of its own, for as long as a bench lasts; and figures for people."""

import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from deployerp.core.errors import Unavailable
from deployerp.embedded.demo import Api

_COMMAND = (sys.executable, "-m", "deployerp.cli")
_READY_SECONDS = 60


@asynccontextmanager
async def running(
    home: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs `deployerp` with arguments; it ends with the block, however that ends."""
    with (home / "control-plane.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | dict(environment or {}),
            # Ctrl-C is ours: what was made is removed through it, so it ends last.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()


@asynccontextmanager
async def client_of(home: Path, port: int, process: asyncio.subprocess.Process) -> AsyncIterator[Api]:
    """The API once it is ready, with an administrator's key. Raises `Unavailable` when it does not start."""
    base = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        deadline = time.monotonic() + _READY_SECONDS
        while not await _is_ready(session, base):
            if process.returncode is not None or time.monotonic() > deadline:
                raise Unavailable(f"The control plane did not start: {home}/control-plane.log tells why.")
            await asyncio.sleep(0.1)
        yield Api(session, base, await _new_key(home))


async def _is_ready(session: aiohttp.ClientSession, base: str) -> bool:
    try:
        async with session.get(f"{base}/readyz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def _new_key(home: Path) -> str:
    made = await asyncio.create_subprocess_exec(
        *_COMMAND, "keys", "create", "--organization=bench", "--create", f"--home={home}",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await made.communicate()
    return output.decode().strip()


def spread(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Median, smallest and largest."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(figure, digits) for name, figure in figures.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
