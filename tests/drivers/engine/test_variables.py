"""Environment variables reach a container byte for byte (case R02)."""

import dataclasses
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployerp.drivers.engine.containers import ContainerSpec
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import connect
from tests.variables import AWKWARD_VARIABLES

pytestmark = pytest.mark.fault("27")


@pytest.fixture
async def engine(sshd: Any) -> AsyncIterator[Engine]:
    async with connect(sshd.target) as host:
        yield await host.engine()


async def variables(engine: Engine, container: str) -> dict[str, str]:
    """What the first process of the container was started with."""
    read = await engine.execute(container, ["cat", "/proc/1/environ"], timeout=10, check=True)
    pairs = (pair.split("=", 1) for pair in read.stdout.decode().split("\0") if pair)
    return {name: value for name, value in pairs if name in AWKWARD_VARIABLES}


async def test_values_are_the_same_in_each_container(
    engine: Engine, busybox: str, label: dict[str, str]
) -> None:
    spec = ContainerSpec(
        name=f"deployerp-test-{uuid.uuid4().hex[:12]}",
        image=busybox,
        labels=label,
        command=["sleep", "60"],
        environment=AWKWARD_VARIABLES,
        stop_timeout=0,
    )
    first = await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    assert await variables(engine, spec.name) == AWKWARD_VARIABLES
    await engine.restart_container(spec.name)
    assert await variables(engine, spec.name) == AWKWARD_VARIABLES
    assert await engine.ensure_container(spec) == first
    assert await engine.ensure_container(dataclasses.replace(spec, command=["sleep", "61"])) != first
    await engine.start_container(spec.name)
    assert await variables(engine, spec.name) == AWKWARD_VARIABLES
