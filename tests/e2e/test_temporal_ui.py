"""What an operator finds in Temporal's own user interface."""

import asyncio
from datetime import UTC, datetime

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowHandle

from deployerp.domain.operations.steps import STEPS
from deployerp.domain.periodic import SHARDS
from deployerp.drivers.temporal import KIND, ORGANIZATION, RESOURCE, SLUG
from tests.e2e.conftest import House, Shop
from tests.e2e.plane import Plane


async def test_an_operation_tells_of_itself(plane: Plane, house: House, shop: Shop) -> None:
    handle = plane.temporal.client.get_workflow_handle(f"instance-deploy.{shop.slug}.{shop.operation['id']}")
    described = await handle.describe()
    assert described.workflow_type == "DeployInstance"
    attributes = described.typed_search_attributes
    assert attributes[SLUG] == shop.slug
    assert attributes[ORGANIZATION] == str(plane.client.organization_id)
    assert attributes[RESOURCE] == shop.id
    assert attributes[KIND] == "instance.deploy"
    assert await described.static_summary() == f"Deploy instance {shop.slug}"
    titles = [step["title"] for step in shop.operation["steps"]]
    assert [title for title in await summaries(plane, handle) if title] == titles


async def summaries(plane: Plane, handle: WorkflowHandle) -> list[str]:
    """The summaries of a workflow's activities, as its history has them."""
    history = await handle.fetch_history()
    payloads = [
        event.user_metadata.summary
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    converter = plane.temporal.client.data_converter
    return [(await converter.decode([payload]))[0] if payload.data else "" for payload in payloads]


async def test_operations_are_found_by_organization_resource_and_kind(plane: Plane, shop: Shop) -> None:
    query = (
        f"DeployerpOrganization = '{plane.client.organization_id}' AND DeployerpResource = '{shop.id}'"
        " AND DeployerpKind = 'instance.deploy'"
    )
    async with asyncio.timeout(10):
        while not (found := [one.id async for one in plane.temporal.client.list_workflows(query)]):
            await asyncio.sleep(0.2)
    assert found == [f"instance-deploy.{shop.slug}.{shop.operation['id']}"]


@pytest.mark.fault("16")
async def test_an_operator_finds_an_instance_by_its_slug(plane: Plane, shop: Shop) -> None:
    by_slug = f"DeployerpSlug = '{shop.slug}' OR WorkflowId STARTS_WITH 'instance-deploy.{shop.slug}.'"
    async with asyncio.timeout(10):
        while not (found := [one.id async for one in plane.temporal.client.list_workflows(by_slug)]):
            await asyncio.sleep(0.2)
    assert f"instance-deploy.{shop.slug}.{shop.operation['id']}" in found
    queue = f"TaskQueue = '{plane.settings.temporal_task_queue}' AND WorkflowType = 'KeepWorking'"
    assert len([one async for one in plane.temporal.client.list_workflows(queue)]) == len(SHARDS)


async def test_current_details_name_the_step_in_words(plane: Plane, house: House, shop: Shop) -> None:
    begun = await plane.begin("POST", f"/v1/instances/{shop.id}/actions", {"action": "restart"})
    handle = plane.temporal.client.get_workflow_handle(
        f"instance-restart.{shop.slug}.{begun['operation']['id']}"
    )
    seen = set()
    deadline = datetime.now(UTC).timestamp() + 60
    while (operation := await plane.get(f"/v1/operations/{begun['operation']['id']}"))["finishedAt"] is None:
        assert datetime.now(UTC).timestamp() < deadline
        told = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
        seen.add(told.current_details)
    assert operation["state"] == "succeeded"
    assert set(STEPS.values()) & seen
