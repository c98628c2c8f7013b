"""Operations of all kinds while everything breaks; then the records are compared with the world.

`python -m tests.chaos SEED...`: the last line is one JSON object, and before it there is one for each seed.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from alembic import command as alembic

from deployerp.core import logging
from deployerp.core.settings import Settings
from deployerp.embedded.control_plane import provide_images
from deployerp.migrations import configuration
from tests.chaos.log import Log
from tests.chaos.programs import running
from tests.chaos.run import Extent, Run

_STATE = Path(".deployerp")


async def run_seed(seed: int, extent: Extent, home: Path) -> dict[str, Any]:
    """One run, its result as the line that tells of it."""
    log = Log(home / "chaos.log")

    async def prepare(settings: Settings) -> None:
        await asyncio.to_thread(alembic.upgrade, configuration(settings.database_url), "head")

    began = time.monotonic()
    async with running(home, seed, prepare) as plane:
        base = f"http://127.0.0.1:{plane.api_port}"
        async with httpx.AsyncClient(base_url=base, timeout=10) as http:
            result = await Run(plane, http, seed, extent, log).result()
    return result | {"seconds": round(time.monotonic() - began)}


def together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of all seeds."""
    targets: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, target in result["targets"].items():
            known = targets.setdefault(name, {"goal": 0, "value": 0, "met": True})
            known["goal"] += target["goal"]
            known["value"] += target["value"]
            known["met"] = known["met"] and target["met"]
    return {
        "chaos": "small",
        "ok": bool(results) and all(result["ok"] for result in results),
        "seed": [result["seed"] for result in results],
        "targets": targets,
    }


async def run_seeds(settings: Settings, seeds: Sequence[int], extent: Extent) -> dict[str, Any]:
    """Tells of each seed as it ends; the result of all."""
    ended = asyncio.current_task()
    assert ended is not None
    # What was made is removed whoever ends the run, and however.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.cancel)
    await provide_images(settings, lambda line: _tell(line, sys.stderr))
    results = []
    for seed in seeds:
        _tell(f"Seed {seed}: {extent.operations} operations", sys.stderr)
        with _home(seed) as home:
            try:
                result = await run_seed(seed, extent, home)
            except Exception as error:
                result = {"chaos": "small", "ok": False, "seed": seed, "targets": {}, "error": repr(error)}
                traceback.print_exc()
        results.append(result)
        _tell(json.dumps(result), sys.stdout)
    return together(results)


@contextmanager
def _home(seed: int) -> Iterator[Path]:
    """A folder for a run; its logs are kept, for whoever looks for the cause of a finding."""
    home = Path(tempfile.mkdtemp(prefix=f"deployerp-chaos-{seed}-"))
    # PostgreSQL's user walks through it.
    home.chmod(0o711)
    try:
        yield home
    finally:
        kept = _STATE / "chaos" / str(seed)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for log in home.glob("*.log"):
            shutil.copy(log, kept)
        shutil.rmtree(home, ignore_errors=True)
        _tell(f"The logs are in {kept}", sys.stderr)


def main(seeds: Sequence[int], extent: Extent) -> int:
    logging.configure("ERROR")
    _STATE.mkdir(exist_ok=True)
    result = asyncio.run(run_seeds(Settings(home=_STATE.resolve()), seeds, extent))
    _tell(json.dumps(result), sys.stdout)
    return 0 if result["ok"] else 1


def _tell(line: str, stream: Any) -> None:
    stream.write(f"{line}\n")
    stream.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--operations", type=int, default=100)
    given = parser.parse_args()
    sys.exit(main(given.seeds, Extent(operations=given.operations)))
