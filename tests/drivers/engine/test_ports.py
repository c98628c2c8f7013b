"""Containers whose port somebody else has (case B01): the error names the port and who holds it."""

import dataclasses
import socket
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployerp.activities.steps.ports import naming_holders
from deployerp.core.errors import PortInUse
from deployerp.drivers.engine.containers import ContainerSpec, PublishedPort
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.engine.ports import port_in
from deployerp.drivers.server.host import Host, connect
from tests.machines import free_port

pytestmark = pytest.mark.fault("27")


@pytest.fixture
async def host(sshd: Any) -> AsyncIterator[Host]:
    async with connect(sshd.target) as host:
        yield host


@pytest.fixture
async def engine(host: Host) -> Engine:
    return await host.engine()


@pytest.fixture
def spec(busybox: str, label: dict[str, str]) -> ContainerSpec:
    return ContainerSpec(
        name=f"deployerp-test-{uuid.uuid4().hex[:12]}",
        image=busybox,
        labels=label,
        command=["sleep", "60"],
        published_ports=[PublishedPort(80, free_port(), "127.0.0.1")],
        stop_timeout=0,
    )


async def test_a_container_that_holds_the_port_is_named(engine: Engine, spec: ContainerSpec) -> None:
    holder = dataclasses.replace(spec, name=f"{spec.name}-holder")
    for each in (holder, spec):
        await engine.ensure_container(each)
    await engine.start_container(holder.name)
    with pytest.raises(PortInUse) as caught:
        await engine.start_container(spec.name)
    [port] = spec.published_ports
    assert (caught.value.code, caught.value.retryable) == ("port_in_use", False)
    assert caught.value.details["holder"] == f"container {holder.name}"
    for said in (f"port {port.host}", holder.name, spec.name):
        assert said in caught.value.message


async def test_a_program_that_holds_the_port_is_named(
    host: Host, engine: Engine, spec: ContainerSpec
) -> None:
    [port] = spec.published_ports
    await engine.ensure_container(spec)
    held = rf"port {port.host} .* held by the program (python|pytest)"
    with socket.create_server(("127.0.0.1", port.host)), pytest.raises(PortInUse, match=held):
        async with naming_holders(host):
            await engine.start_container(spec.name)
    await engine.start_container(spec.name)


@pytest.mark.parametrize(
    "said",
    [
        "Bind for 0.0.0.0:80 failed: port is already allocated",
        "Bind for :::80 failed: port is already allocated",
        "Error starting userland proxy: listen tcp4 0.0.0.0:80: bind: address already in use",
        "failed to bind host port for 0.0.0.0:80:172.18.0.2:8080/tcp: address already in use",
    ],
)
def test_the_port_is_read_from_what_engines_say(said: str) -> None:
    endpoint = "driver failed programming external connectivity on endpoint x (1a2b): "
    assert port_in(endpoint + said) == 80


def test_other_failures_name_no_port() -> None:
    assert port_in("Could not start container x: no such network at 10.0.0.1:80") is None
