"""A namespace of Temporal's that is made this moment: what it does not know yet stops nobody."""

import asyncio
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client as TemporalClient

from deployerp.core.settings import Settings
from deployerp.worker import open_worker
from tests.conftest import free_port, new_client, open_api

REQUESTS = 20
BEGUN_WITHIN = timedelta(seconds=20)


@pytest.fixture
async def fresh(settings: Settings) -> Settings:
    """Settings with a namespace that nobody has used."""
    namespace = f"fresh-{uuid4().hex}"
    temporal = await TemporalClient.connect(settings.temporal_address)
    retention = Duration()
    retention.FromTimedelta(timedelta(days=1))
    await temporal.workflow_service.register_namespace(
        RegisterNamespaceRequest(namespace=namespace, workflow_execution_retention_period=retention)
    )
    return settings.model_copy(update={"temporal_namespace": namespace})


@pytest.mark.fault("27")
async def test_requests_in_its_first_second_are_accepted_and_begun(fresh: Settings) -> None:
    """Case B02."""
    async with open_api(fresh, settled=False) as http:
        client = await new_client(http, fresh)
        # Nobody listens there: each provision begins, and finds no cloud.
        nowhere = {"auth_url": f"http://127.0.0.1:{free_port()}", "username": "u", "password": "p"}
        credentials = nowhere | {"project": "p", "region": "r"}
        provider = {"name": "nowhere", "kind": "openstack", "credentials": credentials}
        provider_id = (await client.data("POST", "/v1/providers", provider))["id"]

        async def provision(number: int) -> str:
            await asyncio.sleep(number / REQUESTS)
            server = {"name": f"s{number}", "providerId": provider_id, "size": "small"}
            begun = await client.data("POST", "/v1/servers", server, 202)
            return f"/v1/operations/{begun['operation']['id']}"

        async def wait_for_start(path: str) -> timedelta:
            while (operation := await client.data("GET", path))["startedAt"] is None:
                await asyncio.sleep(0.1)
            started, created = operation["startedAt"], operation["createdAt"]
            return datetime.fromisoformat(started) - datetime.fromisoformat(created)

        requests = [asyncio.create_task(provision(number)) for number in range(REQUESTS)]
        async with asyncio.timeout(120), open_worker(fresh):
            for operation in await asyncio.gather(*requests):
                assert await wait_for_start(operation) <= BEGUN_WITHIN
