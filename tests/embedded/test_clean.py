"""`make clean`: what a demo that was killed has left."""

import asyncio
import os
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from deployerp.embedded import control_plane, demo

CLEAN = Path(__file__).parents[2] / "scripts/clean"


@pytest.mark.fault("24")
async def test_the_control_plane_of_a_demo_that_was_killed_is_ended(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    clean = Path(shutil.copy(CLEAN, tmp_path / "scripts"))
    ports = control_plane.Ports.free()
    settings = control_plane.embedded_settings(tmp_path / ".deployerp/demo-1", ports)
    # It must find no engine: it removes all servers of a machine.
    environment = os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/nowhere.sock"}
    async with AsyncExitStack() as running:
        demonstration = demo._Demo(settings.home.parent, False, demo.Progress(), demo.Result(), running)
        await demonstration._start(settings, ports, lambda _: None)
        # What would end the control plane has not run, as when the demo is killed.
        cleaning = await asyncio.create_subprocess_exec(clean, env=environment)
        assert await asyncio.wait_for(cleaning.wait(), 60) == 0
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", ports.api)
    assert not (tmp_path / ".deployerp").exists()
