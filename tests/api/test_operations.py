"""Operations through the API: what runs, how far it is, how to stop it, how to try again."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import httpx
import pytest
from temporalio.service import RPCError

from deployerp.activities.records import StepFailure
from deployerp.api.contract import streams
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.operations.steps import StepRun
from deployerp.drivers.temporal import Temporal
from tests.api.following import following
from tests.api.people import person
from tests.conftest import Client, Fleet
from tests.serving import listening


async def test_an_operation_shows_its_steps(client: Client, fleet: Fleet) -> None:
    begun = await fleet.begin_server()
    begun_id = begun["operation"]["id"]
    path = f"/v1/operations/{begun_id}"
    assert await client.data("GET", path) == begun["operation"] | {"steps": []}
    order = await fleet.order(begun_id)
    await fleet.records.claim_operation(order)
    await fleet.records.begin_step(StepRun(begun_id, "create_node"))
    await fleet.records.detail_step(StepRun(begun_id, "create_node"), "Asking the cloud")
    running = await client.data("GET", path)
    assert running["state"] == "running"
    assert running["startedAt"] is not None
    (step,) = running["steps"]
    assert step | {"startedAt": None} == {
        "name": "create_node",
        "title": "Create the machine",
        "state": "running",
        "detail": "Asking the cloud",
        "attempt": 1,
        "nextAttemptAt": None,
        "startedAt": None,
        "finishedAt": None,
    }
    full = StepFailure("provider_error", "The cloud is full.", timedelta(seconds=30))
    await fleet.records.fail_step(StepRun(begun_id, "create_node"), full)
    failing = await client.data("GET", path)
    assert (failing["errorCode"], failing["errorMessage"]) == ("provider_error", "The cloud is full.")
    assert failing["steps"][0]["nextAttemptAt"] is not None
    await fleet.records.begin_step(StepRun(begun_id, "create_node"))
    await fleet.records.end_step(StepRun(begun_id, "create_node"))
    await fleet.records.begin_step(StepRun(begun_id, "wait_for_node"))
    await fleet.end(begun)
    ended = await client.data("GET", path)
    assert (ended["state"], ended["errorCode"]) == ("succeeded", None)
    assert [(each["name"], each["state"], each["attempt"]) for each in ended["steps"]] == [
        ("create_node", "succeeded", 2),
        ("wait_for_node", "running", 1),
    ]
    # Not what its first attempt failed with.
    assert ended["steps"][0]["detail"] is None


async def test_operations_are_listed_newest_first(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    await client.call("DELETE", f"/v1/servers/{server['id']}")
    listed = await client.data("GET", "/v1/operations")
    assert [each["action"] for each in listed] == ["delete", "provision"]
    assert [each["state"] for each in listed] == ["pending", "succeeded"]


async def test_a_pending_operation_is_cancelled(client: Client, fleet: Fleet, settings: Settings) -> None:
    begun = await fleet.begin_server()
    path = f"/v1/operations/{begun['operation']['id']}"
    answer = await client.request("POST", f"{path}/cancel")
    assert answer.status_code == 202
    assert answer.headers["Location"] == path
    assert answer.json()["data"]["state"] == "cancelling"
    order = await fleet.order(begun["operation"]["id"])
    temporal = await Temporal.open(settings)
    await until_asked_to_stop(temporal, order.workflow_id)
    assert await fleet.records.claim_operation(order) is False
    await fleet.end(begun, "cancelled", code="cancelled", message="The operation was cancelled.")
    assert (await client.data("GET", path))["state"] == "cancelled"
    assert (await client.data("GET", f"/v1/servers/{begun['id']}"))["status"] == "failed"


async def until_asked_to_stop(temporal: Temporal, workflow_id: str) -> None:
    """Temporal is told beside the answer."""
    async with asyncio.timeout(10):
        while True:
            with suppress(RPCError):
                history = await temporal.client.get_workflow_handle(workflow_id).fetch_history()
                kinds = [event.WhichOneof("attributes") for event in history.events]
                if "workflow_execution_cancel_requested_event_attributes" in kinds:
                    return
            await asyncio.sleep(0.05)


async def test_what_has_ended_is_not_cancelled(client: Client, fleet: Fleet) -> None:
    begun = await fleet.begin_server()
    await fleet.end(begun)
    path = f"/v1/operations/{begun['operation']['id']}/cancel"
    error = await client.error("POST", path, code="invalid_state")
    assert error["details"] == {"state": "succeeded"}


async def test_a_failed_operation_is_tried_again(client: Client, fleet: Fleet) -> None:
    begun = await fleet.begin_server()
    failed = begun["operation"]["id"]
    await fleet.end(begun, "failed", code="upstream_error", message="Out of luck.")
    answer = await client.request("POST", f"/v1/operations/{failed}/retry")
    assert answer.status_code == 202
    again = answer.json()["data"]
    assert answer.headers["Location"] == f"/v1/operations/{again['id']}"
    assert (again["action"], again["state"], again["retryOf"]) == ("provision", "pending", failed)
    assert (await client.data("GET", f"/v1/servers/{begun['id']}"))["status"] == "provisioning"
    error = await client.error("POST", f"/v1/operations/{failed}/retry", code="operation_in_progress")
    assert error["details"] == {"operation_id": again["id"]}
    await fleet.end({"operation": again})
    assert (await client.data("GET", f"/v1/servers/{begun['id']}"))["status"] == "running"


async def test_only_the_latest_failed_or_cancelled_operation_is_tried_again(
    client: Client, fleet: Fleet
) -> None:
    begun = await fleet.begin_server()
    first = begun["operation"]["id"]
    await client.error("POST", f"/v1/operations/{first}/retry", code="invalid_state")
    await fleet.end(begun, "cancelled")
    second = await client.data("POST", f"/v1/operations/{first}/retry", status=202)
    await fleet.end({"operation": second}, "failed")
    error = await client.error("POST", f"/v1/operations/{first}/retry", code="invalid_state")
    assert error["details"] == {"latest_operation_id": second["id"]}
    third = await client.data("POST", f"/v1/operations/{second['id']}/retry", status=202)
    await fleet.end({"operation": third})
    await client.error("POST", f"/v1/operations/{third['id']}/retry", code="invalid_state")


async def test_who_may_not_delete_does_not_try_a_deletion_again(
    client: Client, fleet: Fleet, sessions: SessionFactory
) -> None:
    key = await client.data("POST", "/v1/api-keys", {"name": "writes", "level": "write"})
    writer = Client(client.http, client.organization_id, key["token"])
    developer = await person(client, sessions, "developer")
    begun = await client.data("DELETE", f"/v1/servers/{(await fleet.server())['id']}?force=true", status=202)
    await fleet.end(begun, "cancelled")
    retry = f"/v1/operations/{begun['operation']['id']}/retry"
    for caller in (writer, developer):
        error = await caller.error("POST", retry, code="forbidden")
        assert error["details"] == {"permission": "delete:servers"}
    # What they may begin, they may try again.
    begun = await fleet.begin_server("two")
    await fleet.end(begun, "failed")
    await writer.data("POST", f"/v1/operations/{begun['operation']['id']}/retry", status=202)
    await client.data("POST", retry, status=202)


async def test_a_deletion_by_force_is_tried_again_by_force(
    client: Client, fleet: Fleet, settings: Settings
) -> None:
    server = await fleet.server()
    begun = await client.data("DELETE", f"/v1/servers/{server['id']}?force=true")
    await fleet.end(begun, "failed")
    again = await client.data("POST", f"/v1/operations/{begun['operation']['id']}/retry")
    temporal = await Temporal.open(settings)
    handle = temporal.client.get_workflow_handle(f"server-delete.one.{again['id']}")
    history = await handle.fetch_history()
    (given,) = history.events[0].workflow_execution_started_event_attributes.input.payloads
    assert json.loads(given.data)["force"] is True


async def test_a_stream_tells_each_change_and_ends_with_the_operation(
    client: Client, fleet: Fleet, settings: Settings
) -> None:
    begun = await fleet.begin_server()
    begun_id = begun["operation"]["id"]
    order = await fleet.order(begun_id)
    async with listening(settings) as address, httpx.AsyncClient(base_url=address) as http:
        headers = {"Authorization": f"Bearer {client.token}"}
        async with http.stream("GET", f"/v1/operations/{begun_id}/events", headers=headers) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            events = told(answer)
            assert await anext(events) == begun["operation"] | {"steps": []}
            await fleet.records.claim_operation(order)
            assert (await anext(events))["state"] == "running"
            await fleet.records.begin_step(StepRun(begun_id, "create_node"))
            assert [each["state"] for each in (await anext(events))["steps"]] == ["running"]
            await fleet.records.end_step(StepRun(begun_id, "create_node"), "Machine 7")
            assert [each["detail"] for each in (await anext(events))["steps"]] == ["Machine 7"]
            await fleet.end(begun)
            last = await anext(events)
            assert last == await client.data("GET", f"/v1/operations/{begun_id}")
            assert last["state"] == "succeeded"
            assert [each async for each in events] == []
        ended = await asyncio.wait_for(http.get(f"/v1/operations/{begun_id}/events", headers=headers), 5)
        assert re.fullmatch("retry: 1000\n\nevent: operation\ndata: .*\n\n", ended.text)


@pytest.mark.fault("24")
async def test_streams_of_operations_take_the_places_of_streams(
    client: Client, fleet: Fleet, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_MOST_STREAMS", 1)
    begun = await fleet.begin_server()
    path = f"/v1/operations/{begun['operation']['id']}/events"
    headers = {"Authorization": f"Bearer {client.token}"}
    async with listening(settings) as address, httpx.AsyncClient(base_url=address) as http:
        async with http.stream("GET", path, headers=headers) as answer:
            await anext(told(answer))
            for refused in (path, "/v1/events/stream"):
                assert (await http.get(refused, headers=headers)).status_code == 429
        async with asyncio.timeout(10), following(client, address) as stream:
            assert await stream.block() == ["retry: 1000"]


async def told(answer: httpx.Response) -> AsyncIterator[dict]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
