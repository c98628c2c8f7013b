"""Sees to the engine and the images before the tests, so that these do not wait for them in the dark."""

import asyncio
import sys
from pathlib import Path

from deployerp.core.settings import Settings
from deployerp.embedded.control_plane import provide_images

STATE = Path(".deployerp")


def _report(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    STATE.mkdir(exist_ok=True)
    asyncio.run(provide_images(Settings(home=STATE.resolve()), _report))
