"""Steps on a real engine: every server is this machine, reached through a real sshd."""

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from unittest.mock import AsyncMock
from uuid import UUID

import pytest
from sqlalchemy import select

from deployerp.activities.instances import InstanceActivities
from deployerp.activities.records import Records
from deployerp.activities.steps.hosts import Hosts
from deployerp.activities.steps.instance_parts import Images
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.domain.releases import Release, active_release
from deployerp.domain.servers import Server
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import Host, connect
from deployerp.embedded.control_plane import provide_images
from tests.machines import SSHServer, busybox, label, sshd

__all__ = ["busybox", "label", "sshd"]

Removal = Callable[[Mapping[str, str]], None]
"""Has everything with these labels removed after the test."""


@pytest.fixture(scope="session")
async def images() -> Images:
    settings = Settings()
    await provide_images(settings, print)
    return Images(settings.postgres_image, settings.odoo_image_for("19.0"))


@pytest.fixture
async def host(sshd: SSHServer) -> AsyncIterator[Host]:
    async with connect(sshd.target) as opened:
        yield opened


@pytest.fixture
async def engine(host: Host) -> Engine:
    return await host.engine()


class Neighbours(Hosts):
    """Every server is this machine."""

    def __init__(self, vault: Vault, host: Host) -> None:
        super().__init__(vault, AsyncMock())
        self._host = host

    @asynccontextmanager
    async def open(self, server: Server) -> AsyncIterator[Host]:
        yield self._host


@pytest.fixture
def steps(records: Records, settings: Settings, host: Host) -> InstanceActivities:
    vault = Vault(settings.encryption_keys)
    return InstanceActivities(records, Neighbours(vault, host), vault, settings)


async def release_of(records: Records, instance_id: UUID | str) -> Release:
    [release] = await records.find(select(Release).where(active_release(UUID(str(instance_id)))))
    return release


@pytest.fixture
def remove_afterwards() -> Iterator[Removal]:
    marked: list[Mapping[str, str]] = []
    yield marked.append
    for labels in marked:
        remove_labelled([f"label={name}={value}" for name, value in labels.items()])


def remove_labelled(selected: list[str]) -> None:
    filters = [part for each in selected for part in ("--filter", each)]
    for listing, removal in (
        (["ps", "--all"], ["rm", "--force", "--volumes"]),
        (["network", "ls"], ["network", "rm"]),
        (["volume", "ls"], ["volume", "rm"]),
    ):
        found = docker(*listing, "--quiet", *filters).split()
        if found:
            docker(*removal, *found)


def docker(*arguments: str) -> str:
    """What the engine's own client says."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout
