"""The writer of state: claims, ends and the facts that they leave, on both databases."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlmodel import col

from deployerp.activities import records as records_module
from deployerp.activities.records import Records, StepFailure
from deployerp.activities.steps import settling
from deployerp.activities.steps.routes import routed_instances
from deployerp.core.errors import NotFound
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.events.log import write_events
from deployerp.domain.instances import Instance
from deployerp.domain.operations.messages import EndpointOrder, OperationEnd, OperationOrder
from deployerp.domain.operations.operation import Operation, OperationHold
from deployerp.domain.operations.steps import StepRun
from deployerp.domain.servers import Server
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint
from deployerp.drivers.temporal import Temporal
from tests.conftest import Client, Fleet, new_client

T = TypeVar("T")


async def rows(sessions: SessionFactory, model: type[T]) -> Sequence[T]:
    async with sessions() as session:
        return (await session.scalars(select(model).order_by(col(model.created_at)))).all()


async def test_a_pending_operation_is_claimed_and_its_workflow_may_ask_again(
    fleet: Fleet, records: Records, sessions: SessionFactory
) -> None:
    begun = await fleet.begin_server()
    order = await fleet.order(begun["operation"]["id"])
    assert await records.claim_operation(order) is True
    (operation,) = await rows(sessions, Operation)
    assert operation.state == "running"
    assert operation.started_at is not None
    (server,) = await rows(sessions, Server)
    assert server.status == "provisioning"
    assert await records.claim_operation(order) is True
    (again,) = await rows(sessions, Operation)
    assert again.started_at == operation.started_at


@pytest.mark.parametrize("outcome", ["cancelled", "failed", "succeeded"])
async def test_what_has_ended_is_not_claimed(fleet: Fleet, records: Records, outcome: str) -> None:
    begun = await fleet.begin_server()
    order = await fleet.end(begun, outcome)
    assert await records.claim_operation(order) is False
    assert (await fleet.client.data("GET", f"/v1/operations/{order.operation_id}"))["state"] == outcome


async def test_what_is_being_cancelled_is_not_claimed(fleet: Fleet, records: Records) -> None:
    begun = await fleet.begin_server()
    order = await fleet.order(begun["operation"]["id"])
    await fleet.client.call("POST", f"/v1/operations/{order.operation_id}/cancel")
    assert await records.claim_operation(order) is False


async def test_what_does_not_exist_is_not_claimed(records: Records) -> None:
    order = OperationOrder(str(uuid4()), str(uuid4()), "server", str(uuid4()), "provision")
    with pytest.raises(NotFound):
        await records.claim_operation(order)


async def test_an_end_is_written_once(fleet: Fleet, records: Records, sessions: SessionFactory) -> None:
    await fleet.client.call("POST", "/v1/webhook-endpoints", {"url": "https://example.com/"})
    order = await fleet.end(await fleet.begin_server())
    (ended,) = await rows(sessions, Operation)
    assert (ended.state, ended.error_code) == ("succeeded", None)
    await records.end_operation(OperationEnd(order, "succeeded"))
    await records.end_operation(OperationEnd(order, "failed", "upstream_error", "Too late."))
    (operation,) = await rows(sessions, Operation)
    assert operation == ended
    (server,) = await rows(sessions, Server)
    assert (server.status, server.status_message) == ("running", None)
    (event,) = await rows(sessions, Event)
    (delivery,) = await rows(sessions, WebhookDelivery)
    assert (event.type, delivery.event_id) == ("server.created", event.id)


async def test_an_end_wakes_the_endpoints_that_are_to_hear_of_it(
    fleet: Fleet, sessions: SessionFactory, settings: Settings
) -> None:
    await fleet.client.call("POST", "/v1/webhook-endpoints", {"url": "https://example.com/"})
    await fleet.server()
    (endpoint,) = await rows(sessions, WebhookEndpoint)
    assert endpoint.awake
    temporal = await Temporal.open(settings)
    assert await temporal.run_state(endpoint.order.workflow_id) == "running"


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
async def test_an_end_without_success_tells_why(fleet: Fleet, sessions: SessionFactory, outcome: str) -> None:
    begun = await fleet.begin_server()
    await fleet.end(begun, outcome, code="provider_refused", message="The quota is used up: raise it.")
    (operation,) = await rows(sessions, Operation)
    assert (operation.state, operation.error_code) == (outcome, "provider_refused")
    (server,) = await rows(sessions, Server)
    assert (server.status, server.status_message) == ("failed", "The quota is used up: raise it.")
    (event,) = await rows(sessions, Event)
    assert event.type == "server.provision_failed"
    assert event.data["statusMessage"] == "The quota is used up: raise it."


async def test_an_end_that_breaks_in_the_middle_leaves_nothing(
    fleet: Fleet, records: Records, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = await fleet.begin_server()
    order = await fleet.order(begun["operation"]["id"])
    await records.claim_operation(order)

    async def breaks(*given: object) -> list[EndpointOrder]:
        await write_events(*given)
        raise ConnectionResetError

    monkeypatch.setattr(settling, "write_events", breaks)
    with pytest.raises(ConnectionResetError):
        await records.end_operation(OperationEnd(order, "succeeded"))
    monkeypatch.undo()
    (operation,) = await rows(sessions, Operation)
    (server,) = await rows(sessions, Server)
    assert (operation.state, operation.finished_at, server.status) == ("running", None, "provisioning")
    assert await rows(sessions, Event) == []
    await records.end_operation(OperationEnd(order, "succeeded"))
    (event,) = await rows(sessions, Event)
    assert event.sequence == 1


async def test_a_server_takes_its_instances_along_when_it_is_deleted(
    fleet: Fleet, sessions: SessionFactory
) -> None:
    client = fleet.client
    server, other = await fleet.server("one"), await fleet.server("other")
    lost = {(await fleet.instance(server["id"]))["id"] for _ in range(2)}
    kept = await fleet.instance(other["id"])
    before = len(await client.data("GET", "/v1/events"))
    await fleet.end(await client.data("DELETE", f"/v1/servers/{server['id']}?force=true"))
    events = await client.data("GET", f"/v1/events?after={before}")
    assert [each["type"] for each in events] == ["instance.deleted", "instance.deleted", "server.deleted"]
    assert {each["resourceId"] for each in events} == lost | {server["id"]}
    assert {each["data"]["status"] for each in events} == {"deleted"}
    instances = await rows(sessions, Instance)
    statuses = {str(each.id): (each.status, each.deleted_at is None) for each in instances}
    assert statuses == {kept["id"]: ("running", True)} | dict.fromkeys(lost, ("deleted", False))


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
async def test_an_instance_that_went_with_its_server_does_not_come_back(
    fleet: Fleet, records: Records, sessions: SessionFactory, outcome: str, claimed: bool
) -> None:
    client = fleet.client
    server = await fleet.server()
    begun = await fleet.begin_instance(server["id"], "acme")
    order = await fleet.order(begun["operation"]["id"])
    if claimed:
        assert await records.claim_operation(order) is True
    await fleet.end(await client.data("DELETE", f"/v1/servers/{server['id']}?force=true"))
    events = await client.data("GET", "/v1/events")
    if not claimed:
        assert await records.claim_operation(order) is False
    await records.end_operation(OperationEnd(order, outcome, "host_unreachable", "Gone."))
    ended = await client.data("GET", f"/v1/operations/{order.operation_id}")
    assert (ended["state"], ended["errorCode"]) == ("cancelled", "superseded")
    (instance,) = await rows(sessions, Instance)
    assert (instance.status, instance.status_message) == ("deleted", "Deleted with its server.")
    assert await client.data("GET", "/v1/events") == events
    assert await client.data("GET", "/v1/instances") == []


async def test_events_of_twenty_writers_have_neither_gaps_nor_repeats(
    fleet: Fleet, records: Records, sessions: SessionFactory, client: Client, settings: Settings
) -> None:
    provider = await fleet.provider()
    begun = [await fleet.begin_server(f"s{n}", provider["id"]) for n in range(20)]
    other = Fleet(await new_client(client.http, settings), records)
    begun_there = await other.begin_server()
    orders = [await fleet.order(each["operation"]["id"]) for each in begun]
    await asyncio.gather(*(records.claim_operation(order) for order in orders))
    await asyncio.gather(
        *(records.end_operation(OperationEnd(order, "succeeded")) for order in orders), other.end(begun_there)
    )
    events = await rows(sessions, Event)
    ours = sorted(each.sequence for each in events if each.organization_id == client.organization_id)
    assert ours == list(range(1, 21))
    assert [each.sequence for each in events if each.organization_id != client.organization_id] == [1]
    told = await client.data("GET", "/v1/events")
    assert [each["sequence"] for each in told] == ours
    assert {each["resourceId"] for each in told} == {each["id"] for each in begun}


async def test_the_database_refuses_a_second_exclusive_hold(fleet: Fleet, sessions: SessionFactory) -> None:
    begun = await fleet.begin_server()
    async with sessions() as session, session.begin():
        session.add(
            OperationHold(
                organization_id=fleet.client.organization_id,
                operation_id=UUID(begun["operation"]["id"]),
                resource_type="server",
                resource_id=UUID(begun["id"]),
                status_before="pending",
            )
        )
        with pytest.raises(DBAPIError, match="resource_id"):
            await session.flush()
        await session.rollback()


async def test_a_step_that_is_tried_again_keeps_its_place_and_its_start(
    fleet: Fleet, records: Records
) -> None:
    begun = await fleet.begin_server()
    begun_id = begun["operation"]["id"]
    await records.begin_step(StepRun(begun_id, "prepare_keys"))
    await records.end_step(StepRun(begun_id, "prepare_keys"), "Two keys")
    await records.begin_step(StepRun(begun_id, "create_node"))
    await records.fail_step(
        StepRun(begun_id, "create_node"), StepFailure("provider_error", "The cloud is full.")
    )
    first = (await fleet.client.data("GET", f"/v1/operations/{begun_id}"))["steps"]
    await records.begin_step(StepRun(begun_id, "prepare_keys"))
    second = (await fleet.client.data("GET", f"/v1/operations/{begun_id}"))["steps"]
    assert [each["name"] for each in second] == ["prepare_keys", "create_node"]
    assert second[0]["startedAt"] == first[0]["startedAt"]
    assert (second[0]["state"], second[0]["attempt"], second[0]["finishedAt"]) == ("running", 2, None)
    assert second[1] == first[1]


async def test_two_runs_of_a_step_have_a_record_each(fleet: Fleet, records: Records) -> None:
    begun_id = (await fleet.begin_server())["operation"]["id"]
    for number, detail in ((1, "The first"), (2, "The second")):
        step = StepRun(begun_id, "check_engine", number)
        assert await records.begin_step(step) == 1
        await records.end_step(step, detail)
    told = (await fleet.client.data("GET", f"/v1/operations/{begun_id}"))["steps"]
    assert [(each["name"], each["attempt"], each["detail"]) for each in told] == [
        ("check_engine", 1, "The first"),
        ("check_engine", 1, "The second"),
    ]


@pytest.mark.fault("5")
async def test_a_run_without_a_step_leaves_what_was_before(fleet: Fleet, records: Records) -> None:
    server = await fleet.server()
    deletion = await fleet.client.data("DELETE", f"/v1/servers/{server['id']}", status=202)
    order = await fleet.order(deletion["operation"]["id"])
    await records.end_operation(OperationEnd(order, "cancelled", "cancelled", "Cancelled.", has_begun=False))
    assert (await fleet.client.data("GET", f"/v1/servers/{server['id']}"))["status"] == "running"


@pytest.mark.fault("5")
@pytest.mark.parametrize(("observed", "status"), [("stopped", "stopped"), (None, "running")])
async def test_a_failure_leaves_what_is_seen_or_what_was_before(
    fleet: Fleet, records: Records, observed: str | None, status: str
) -> None:
    server = await fleet.server()
    path = f"/v1/servers/{server['id']}"
    begun = await fleet.client.data("POST", f"{path}/actions", {"action": "restart"}, 202)
    order = await fleet.order(begun["operation"]["id"])
    await records.claim_operation(order)
    await records.end_operation(
        OperationEnd(order, "failed", "upstream_error", "It broke.", observed=observed)
    )
    told = await fleet.client.data("GET", path)
    assert (told["status"], told["statusMessage"]) == (status, "It broke.")


@pytest.mark.fault("5")
async def test_what_was_once_running_can_be_restarted_after_a_failure(
    fleet: Fleet, sessions: SessionFactory
) -> None:
    server = await fleet.server()
    deployed = await fleet.instance(server["id"])
    never = await fleet.settled(await fleet.begin_instance(server["id"]), "failed")
    async with sessions() as session, session.begin():
        (await session.get_one(Instance, UUID(deployed["id"]))).status = "failed"
    restart = {"action": "restart"}
    await fleet.client.call("POST", f"/v1/instances/{deployed['id']}/actions", restart, 202)
    error = await fleet.client.error(
        "POST", f"/v1/instances/{never['id']}/actions", restart, code="invalid_state"
    )
    assert "retry" in error["message"]


@pytest.mark.fault("6")
async def test_a_step_that_fails_for_a_minute_is_told_once(
    fleet: Fleet, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = await fleet.begin_server()
    operation_id = begun["operation"]["id"]
    failure = StepFailure("host_unreachable", "It does not answer.", timedelta(seconds=30))

    async def stalled() -> Any:
        return await fleet.client.data("GET", "/v1/events?type=operation.stalled")

    await records.begin_step(StepRun(operation_id, "wait_for_ssh"))
    await records.fail_step(StepRun(operation_id, "wait_for_ssh"), failure)
    assert await stalled() == []
    monkeypatch.setattr(records_module, "STALLED_AFTER", timedelta(0))
    for _ in range(2):
        await records.begin_step(StepRun(operation_id, "wait_for_ssh"))
        await records.fail_step(StepRun(operation_id, "wait_for_ssh"), failure)
    [event] = await stalled()
    assert event["data"]["errorMessage"] == "It does not answer."
    await records.begin_step(StepRun(operation_id, "wait_for_ssh"))
    await records.end_step(StepRun(operation_id, "wait_for_ssh"))
    assert (await fleet.client.data("GET", f"/v1/operations/{operation_id}"))["errorCode"] is None


@pytest.mark.fault("9")
async def test_instances_have_a_route_from_their_deploy_to_their_deletion(
    fleet: Fleet, records: Records
) -> None:
    server, elsewhere = await fleet.server("one"), await fleet.server("two")
    running = await fleet.instance(server["id"])
    stopped = await fleet.instance(server["id"])
    stop = f"/v1/instances/{stopped['id']}/actions"
    await fleet.end(await fleet.client.data("POST", stop, {"action": "stop"}))
    deploying = await fleet.begin_instance(server["id"])
    await records.claim_operation(await fleet.order(deploying["operation"]["id"]))
    await fleet.begin_instance(server["id"])
    await fleet.settled(await fleet.begin_instance(server["id"]), "failed")
    await fleet.instance(elsewhere["id"])
    deleting = await fleet.instance(server["id"])
    begun = await fleet.client.data("DELETE", f"/v1/instances/{deleting['id']}")
    await records.claim_operation(await fleet.order(begun["operation"]["id"]))

    routed = await records.rows(routed_instances(await records.get(Server, server["id"])))
    assert all(release.instance_id == instance.id for instance, release in routed)
    assert {str(instance.id) for instance, _ in routed} == {running["id"], stopped["id"], deploying["id"]}
