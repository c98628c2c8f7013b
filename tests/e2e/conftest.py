"""Everything real: one control plane and one server, shared by these tests and removed after them."""

import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from deployerp.core.settings import Settings
from deployerp.domain.operations.messages import OperationOrder
from deployerp.embedded.control_plane import provide_images
from deployerp.workflows.run import OperationRun
from tests.conftest import run_on_postgres, settings_for
from tests.e2e import world
from tests.e2e.plane import Plane, open_plane


def steps_of(steps: Callable[[OperationRun], Coroutine[Any, Any, None]]) -> list[str]:
    """The names of the steps that a workflow runs, in their order, by running it on nothing."""
    names: list[str] = []

    class Noting(OperationRun):
        async def step(self, step: Any, **_: Any) -> None:
            names.append(step.__name__)

    running = steps(Noting(OperationOrder("", "", "server", "", "")))
    with pytest.raises(StopIteration):
        running.send(None)
    return names


@pytest.fixture(scope="session")
async def images() -> None:
    """The images on this machine; having them already costs nothing."""
    await provide_images(Settings(), print)


@pytest.fixture(scope="session")
async def plane(
    images: None,
    postgres_server: str,
    migrated_postgres: str,
    temporal_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Plane]:
    name = f"e2e_{uuid.uuid4().hex}"
    await run_on_postgres(postgres_server, f"CREATE DATABASE {name} TEMPLATE {migrated_postgres}")
    url = f"postgresql+asyncpg://postgres@{postgres_server}/{name}"
    settings = settings_for(url, temporal_address, tmp_path_factory.mktemp("plane"))
    async with open_plane(settings) as opened:
        yield opened
    await run_on_postgres(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(autouse=True)
def no_fault_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A planned fault that never happened would let a test pass without looking."""
    yield
    if "plane" in request.fixturenames:
        faults = request.getfixturevalue("plane").faults
        unused = faults.unused
        faults.clear()
        assert not unused, f"these planned faults did not happen: {unused}"


@dataclass
class House:
    """The server that instance tests share."""

    id: str
    node: str
    operation: dict[str, Any]

    async def contents(self) -> set[str]:
        return await world.on_node(self.node)

    async def unprepare(self) -> None:
        """Makes the next deploy initialise a database, as the first on a server does."""
        volumes = await world.output_of(
            *("docker", "exec", self.node, "docker", "volume", "ls", "--quiet"),
            *("--filter", "label=deployerp.prepared"),
        )
        if names := volumes.split():
            await world.output_of("docker", "exec", self.node, "docker", "volume", "rm", *names)


@pytest.fixture(scope="session")
async def house(plane: Plane) -> AsyncIterator[House]:
    server, operation = await plane.provision(name="house")
    (node,) = await world.nodes_of(server["id"])
    yield House(server["id"], node, operation)
    plane.faults.clear()
    await plane.do("DELETE", f"/v1/servers/{server['id']}?force=true")
    assert await world.left_of_server(server["id"]) == []


@dataclass
class Shop:
    """The first instance on the house, which has its database initialised."""

    id: str
    slug: str
    url: str
    operation: dict[str, Any]


@pytest.fixture(scope="session")
async def shop(plane: Plane, house: House) -> Shop:
    await house.unprepare()
    instance, operation = await plane.deploy(house.id)
    return Shop(instance["id"], instance["slug"], instance["url"], operation)
