"""The way to servers, through a real sshd."""

import asyncio
import getpass
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from deployerp.activities.steps import hosts as hosts_module
from deployerp.activities.steps.hosts import Hosts, bring_image
from deployerp.core.errors import ImageUnavailable
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.domain.servers import Server
from deployerp.drivers.engine.images import pull_error
from deployerp.drivers.server.ssh_login import HostTarget
from tests.machines import sshd_with


@pytest.fixture
async def hosts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hosts]:
    monkeypatch.setattr(hosts_module, "LOGIN", getpass.getuser())
    nodes = AsyncMock()
    nodes.is_gone.return_value = False
    hosts = Hosts(Vault(settings.encryption_keys), nodes)
    yield hosts
    await hosts.close()


def server_at(target: HostTarget, settings: Settings) -> Server:
    return Server(
        id=uuid.uuid4(),
        name="one",
        address=target.address,
        ssh_port=target.port,
        host_key=target.host_key,
        sealed_login_private_key=Vault(settings.encryption_keys).seal(target.private_key),
    )


@pytest.mark.fault("27")
async def test_a_burst_of_operations_on_one_server_shares_a_connection(
    hosts: Hosts, settings: Settings, tmp_path: Path
) -> None:
    """Case R13: an sshd that drops the fourth login under way, and takes ten sessions of each."""
    with sshd_with(tmp_path, "MaxStartups 3:100:3", "MaxSessions 10") as sshd:
        server = server_at(sshd.target, settings)

        async def step(number: int) -> str:
            async with hosts.open(server) as host:
                await host.run(["sleep", "0.2"], timeout=20)
                async with host.lock(f"test-{server.id}"):
                    return (await host.run(["echo", str(number)], timeout=20)).text

        try:
            assert await asyncio.gather(*map(step, range(20))) == [str(number) for number in range(20)]
        finally:
            async with hosts.open(server) as host:
                await host.run(["rm", "-f", f"/run/deployerp-test-{server.id}.lock"], timeout=10)
        assert len(sshd.logins()) == 1


class Bare:
    """A host whose engine has no image and is told by the registry why."""

    def __init__(self) -> None:
        self.image_id = AsyncMock(return_value=None)
        self.pull_image = AsyncMock(side_effect=pull_error("nowhere/odoo:1", 500, "denied: sign in first"))

    async def engine(self) -> "Bare":
        return self

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        yield


@pytest.mark.fault("24")
@pytest.mark.parametrize("own", ["unix:///nowhere/docker.sock", None])
async def test_the_registry_s_reason_is_told_when_nobody_has_the_image(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is not None:
        monkeypatch.setenv("DOCKER_HOST", own)
    host: Any = Bare()
    with pytest.raises(ImageUnavailable, match="denied: sign in first"):
        await bring_image(host, "nowhere/odoo:1")


@pytest.mark.fault("24")
def test_of_an_answer_that_is_no_registry_s_the_body_is_not_told() -> None:
    reason = 'error parsing HTTP 403 response body: invalid character: "<html>secret</html>"'
    assert "secret" not in pull_error("nowhere/odoo:1", 500, reason).message
    unknown = 'Get "https://registry.example.com/v2/": x509: certificate signed by unknown authority'
    assert "unknown authority" in pull_error("nowhere/odoo:1", 500, unknown).message
