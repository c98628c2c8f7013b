"""What Temporal is asked for, against a real server: workflows that people find, and one sweep."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
)

from deployerp.core.settings import Settings
from deployerp.domain.operations.messages import OperationOrder, workflow_id
from deployerp.drivers.temporal import KIND, NAME, ORGANIZATION, RESOURCE, SLUG, Temporal
from tests.certificates import write_certificate


@pytest.fixture
async def temporal(temporal_address: str) -> Temporal:
    return Temporal(await Client.connect(temporal_address), f"test-{uuid4().hex}")


@pytest.mark.fault("16")
async def test_an_operation_is_found_by_the_name_of_its_resource(temporal: Temporal) -> None:
    operation_id, slug = str(uuid4()), f"acme-{uuid4().hex[:8]}"
    order = OperationOrder(
        operation_id,
        str(uuid4()),
        "instance",
        str(uuid4()),
        "deploy",
        workflow_id=workflow_id("instance", "deploy", slug, operation_id),
        resource_name="Acme: Zürich",
        resource_slug=slug,
    )
    await temporal.start_operation(order)
    assert order.workflow_id == f"instance-deploy.{slug}.{operation_id}"
    assert re.fullmatch("[a-z0-9.-]+", order.workflow_id)
    described = await temporal.client.get_workflow_handle(order.workflow_id).describe()
    attributes = described.typed_search_attributes
    assert attributes[NAME] == "Acme: Zürich"
    assert attributes[SLUG] == slug
    assert attributes[KIND] == "instance.deploy"
    assert attributes[ORGANIZATION] == order.organization_id
    assert attributes[RESOURCE] == order.resource_id
    assert await described.memo() == {"name": "Acme: Zürich", "slug": slug}
    assert await described.static_summary() == f"Deploy instance {slug}"


@pytest.mark.fault("16")
async def test_every_worker_adopts_the_periodic_work_that_runs(temporal: Temporal) -> None:
    await temporal.ensure_periodic_work()
    sweep = temporal.client.get_workflow_handle(f"{temporal._task_queue}-sweep-0")
    first = (await sweep.describe()).run_id
    await temporal.ensure_periodic_work()
    assert (await sweep.describe()).run_id == first
    await temporal.terminate(sweep.id, "An operator did it.")
    await temporal.ensure_periodic_work()
    described = await sweep.describe()
    assert (described.status, described.workflow_type) == (WorkflowExecutionStatus.RUNNING, "KeepWorking")


@pytest.fixture
async def behind_tls(temporal_address: str, tmp_path: Path) -> AsyncIterator[Settings]:
    """Temporal behind a proxy that asks for a client certificate, as production clusters have it."""
    server = write_certificate(tmp_path, "temporal.example")
    client = write_certificate(tmp_path, "deployerp.example")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client.certificate))
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(server.certificate, server.key)
    tls.set_alpn_protocols(["h2"])
    host, port = temporal_address.split(":")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=tls)
    try:
        yield Settings(
            temporal_address=f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
            temporal_tls_ca_file=server.certificate,
            temporal_tls_certificate_file=client.certificate,
            temporal_tls_key_file=client.key,
            temporal_tls_server_name="temporal.example",
        )
    finally:
        proxy.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def test_temporal_is_reached_with_a_client_certificate(behind_tls: Settings) -> None:
    assert await (await Temporal.open(behind_tls)).is_ready()


@pytest.mark.parametrize(
    "without",
    [
        {"temporal_tls_ca_file": None},
        {"temporal_tls_certificate_file": None, "temporal_tls_key_file": None},
        {"temporal_tls_server_name": "other.example"},
    ],
    ids=["authority", "client certificate", "server name"],
)
async def test_temporal_is_not_reached_without_a_part_of_tls(
    behind_tls: Settings, without: dict[str, object]
) -> None:
    assert not await (await Temporal.open(behind_tls.model_copy(update=without))).is_ready()


async def test_an_api_key_is_sent_over_tls() -> None:
    temporal = await Temporal.open(Settings(temporal_api_key=SecretStr("a key")))
    config = temporal.client.service_client.config
    assert config.api_key == "a key"
    assert config.tls is True
