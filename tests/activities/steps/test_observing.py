"""What is seen of resources between operations is written where nothing newer is known."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlmodel import col

from deployerp.activities.records import Records
from deployerp.activities.steps.observing import Sighting
from deployerp.database.base import utc_now
from deployerp.domain.events.event import Event
from deployerp.domain.instances import Instance
from tests.conftest import Fleet


@pytest.fixture
async def instances(fleet: Fleet) -> list[dict]:
    """Three that run, and one whose stop is under way."""
    server = await fleet.server()
    instances = [await fleet.instance(server["id"], slug) for slug in ("one", "two", "three", "held")]
    await fleet.client.data(
        "POST", f"/v1/instances/{instances[-1]['id']}/actions", {"action": "stop"}, status=202
    )
    return instances


def sighting(instance: dict, **seen: object) -> Sighting:
    return Sighting("instance", UUID(instance["id"]), **{"begun_at": utc_now(), **seen})


async def test_a_batch_is_written_with_its_events(instances: list[dict], records: Records) -> None:
    one, two, three, held = instances
    written = await records.observe(
        [
            sighting(one, status="stopped", status_message="It was stopped on its server."),
            sighting(two, health="degraded"),
            sighting(three, status="running", health="healthy"),
            sighting(held, status="stopped", health="unhealthy"),
        ]
    )
    assert written == 2
    found = [await records.get(Instance, each["id"]) for each in instances]
    assert [(each.status, each.health) for each in found] == [
        ("stopped", "healthy"),
        ("running", "degraded"),
        ("running", "healthy"),
        ("stopping", "healthy"),
    ]
    assert found[0].status_message == "It was stopped on its server."
    events = await records.find(select(Event).order_by(col(Event.sequence)))
    assert (events[-1].type, events[-1].resource_id) == ("instance.stopped", found[0].id)
    assert [each.sequence for each in events] == list(range(1, len(events) + 1))


async def test_what_has_changed_after_the_look_began_is_left_alone(
    instances: list[dict], records: Records
) -> None:
    before = utc_now() - timedelta(minutes=1)
    assert await records.observe([sighting(instances[0], begun_at=before, status="stopped")]) == 0
    assert (await records.get(Instance, instances[0]["id"])).status == "running"


async def test_a_status_that_nothing_leads_to_is_not_written(instances: list[dict], records: Records) -> None:
    assert await records.observe([sighting(instances[0], status="deploying")]) == 0
    assert await records.observe([sighting({"id": str(UUID(int=1))}, status="stopped")]) == 0
