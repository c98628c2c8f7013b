"""The event log and the deliveries that come of it, through the API."""

import asyncio
from fnmatch import fnmatchcase

import jsonschema_rs

from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.events.types import EVENT_TYPES, STALLED
from deployerp.domain.operations.messages import Outcome
from deployerp.domain.tables import lifecycles
from tests.api.calls import DOCUMENT
from tests.api.following import following
from tests.api.rows import Planted
from tests.api.writers import write_at_once
from tests.conftest import Client, Fleet
from tests.serving import listening

WRITERS, EACH = 20, 10


async def test_events_tell_what_happened_in_order(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    instance = await fleet.instance(server["id"])
    path = f"/v1/instances/{instance['id']}/actions"
    await fleet.end(await client.data("POST", path, {"action": "stop"}), "failed", message="It hangs.")
    events = await client.data("GET", "/v1/events")
    assert [(each["sequence"], each["type"]) for each in events] == [
        (1, "server.created"),
        (2, "instance.deployed"),
        (3, "instance.stop_failed"),
    ]
    failed = events[-1]
    assert (failed["resourceType"], failed["resourceId"]) == ("instance", instance["id"])
    assert failed["data"] == {
        "id": instance["id"],
        "name": instance["name"],
        "slug": instance["slug"],
        # As it was before: nobody could look.
        "status": "running",
        "statusMessage": "It hangs.",
        "serverId": server["id"],
        "odooVersion": "19.0",
        "environmentType": "production",
        "url": None,
    }


async def test_the_log_is_read_from_any_point(client: Client, fleet: Fleet) -> None:
    path = f"/v1/servers/{(await fleet.server())['id']}/actions"
    for _ in range(3):
        await fleet.end(await client.data("POST", path, {"action": "restart"}))

    async def sequences(query: str) -> list[int]:
        return [each["sequence"] for each in await client.data("GET", f"/v1/events?{query}")]

    assert await sequences("after=2") == [3, 4]
    assert await sequences("after=1&per_page=2") == [2, 3]
    assert await sequences(f"after={2**31 - 1}") == []
    for query, field in (("after=-1", "after"), (f"after={2**31}", "after"), ("per_page=101", "per_page")):
        error = await client.error("GET", f"/v1/events?{query}", code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == [field]


async def test_an_event_is_delivered_to_the_endpoints_that_want_it(client: Client, fleet: Fleet) -> None:
    wanted = {}
    for types in (["server.*"], ["instance.*"], ["*"]):
        body = {"url": "https://example.com/hooks", "types": types}
        wanted[types[0]] = (await client.data("POST", "/v1/webhook-endpoints", body, 201))["id"]
    gone = await client.data("POST", "/v1/webhook-endpoints", {"url": "https://example.com/"}, 201)
    await client.call("DELETE", f"/v1/webhook-endpoints/{gone['id']}")
    await fleet.server()
    (event,) = await client.data("GET", "/v1/events")
    deliveries = await client.data("GET", "/v1/webhook-deliveries")
    assert {each["endpointId"] for each in deliveries} == {wanted["server.*"], wanted["*"]}
    for each in deliveries:
        assert (each["eventId"], each["eventType"]) == (event["id"], "server.created")
        assert (each["state"], each["attempts"]) == ("pending", 0)
        detailed = await client.data("GET", f"/v1/webhook-deliveries/{each['id']}")
        assert detailed == each | {"attemptLog": []}


PATTERNS = ("*", "instance.*", "*.deployed", "*_failed", "server.created", "s*r.*d", "webhook_endpoint.*")


async def test_the_log_is_read_by_type(client: Client, sessions: SessionFactory) -> None:
    names = [*EVENT_TYPES]
    await Planted(sessions, client.organization_id).add(Event, len(names), make=lambda n: {"type": names[n]})
    for pattern in PATTERNS:
        found = await client.data("GET", f"/v1/events?type={pattern}&per_page=100")
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        assert [each["type"] for each in found] == fitting, pattern


async def test_a_type_that_there_is_not_is_refused(client: Client) -> None:
    for pattern in ("instance", "instances.*", "instance.%25", "instance.deploye_", "I*", "%25", ""):
        error = await client.error("GET", f"/v1/events?type={pattern}", code="validation_error")
        assert [each["field"] for each in error["details"]["fields"]] == ["type"], pattern


async def act(fleet: Fleet, kind: str, id: str, action: str, outcome: Outcome = "succeeded") -> None:
    path = f"/v1/{kind}s/{id}"
    ask = ("DELETE", path) if action == "delete" else ("POST", f"{path}/actions", {"action": action})
    await fleet.end(await fleet.client.data(*ask), outcome, message="It hangs.")


async def happen(fleet: Fleet, kind: str, action: str, outcome: Outcome, server_id: str) -> None:
    """The action comes to this end, of a resource of its own."""
    begun = await (
        fleet.begin_server(f"{action}-{outcome}") if kind == "server" else fleet.begin_instance(server_id)
    )
    if action == lifecycles()[kind].first.name:
        await fleet.end(begun, outcome, message="It hangs.")
        return
    await fleet.end(begun)
    if "running" not in lifecycles()[kind].actions[action].from_states:
        await act(fleet, kind, begun["id"], "stop")
    await act(fleet, kind, begun["id"], action, outcome)


async def test_whatever_happens_is_told_as_the_catalogue_says(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    outcomes: tuple[Outcome, ...] = ("succeeded", "failed")
    for kind, lifecycle in lifecycles().items():
        for action in lifecycle.actions:
            for outcome in outcomes:
                await happen(fleet, kind, action, outcome, server["id"])
    endpoint = await client.data("POST", "/v1/webhook-endpoints", {"url": "https://example.com/hunter2"})
    await client.data("POST", f"/v1/webhook-endpoints/{endpoint['id']}/ping")
    events = await client.data("GET", "/v1/events?per_page=100")
    # Tests of the deliveries have the endpoint that is disabled, those of the records what stalls.
    announced = {name for name, each in EVENT_TYPES.items() if each.announced}
    unseen = announced | {"webhook_endpoint.disabled", STALLED}
    assert {each["type"] for each in events} == EVENT_TYPES.keys() - unseen
    for each in events:
        body = {"type": each["type"], "timestamp": each["createdAt"], "data": each["data"]}
        schema = EVENT_TYPES[each["type"]].json_schema
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(body)
        assert each["type"].partition(".")[0] == each["resourceType"]
        assert each["resourceId"] == each["data"]["id"]
        assert "hunter2" not in str(each)
        if each["type"].endswith("_failed"):
            assert each["data"]["statusMessage"] == "It hangs."


async def test_tools_get_the_catalogue(client: Client) -> None:
    answer = await client.http.get("/v1/event-types")
    assert answer.status_code == 200
    told = {each["name"]: each for each in answer.json()["data"]["types"]}
    assert told.keys() == EVENT_TYPES.keys()
    for name, each in told.items():
        assert each.keys() == {"name", "when", "announced", "schema", "example"}
        jsonschema_rs.validator_for(each["schema"], validate_formats=True).validate(each["example"])
        assert each["announced"] is name.startswith("backup.")


def test_the_contract_has_a_webhook_for_each_type() -> None:
    assert DOCUMENT["webhooks"].keys() == EVENT_TYPES.keys()
    requests = [each["post"] for each in DOCUMENT["webhooks"].values()]
    for request in requests:
        content = request["requestBody"]["content"]["application/json"]
        schema = content["schema"] | {"components": DOCUMENT["components"]}
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(content["example"])
        headers = [each["$ref"].rpartition("/")[2] for each in request["parameters"]]
        assert headers == ["webhook-id", "webhook-timestamp", "webhook-signature"]
        assert {DOCUMENT["components"]["parameters"][name]["in"] for name in headers} == {"header"}
        assert request["responses"].keys() == {"2XX", "410", "default"}
    assert len({each["operationId"] for each in requests}) == len(requests)


async def follow_by_asking(client: Client, count: int) -> list[int]:
    """What a consumer sees that asks for what is new, as long as there is more to come."""
    seen: list[int] = []
    while len(seen) < count:
        path = f"/v1/events?after={seen[-1] if seen else 0}&per_page=7"
        seen += [each["sequence"] for each in await client.data("GET", path)]
        await asyncio.sleep(0.01)
    return seen


async def test_many_writers_at_once_leave_no_gap_and_repeat_nothing(
    client: Client, settings: Settings
) -> None:
    count = WRITERS * EACH
    async with listening(settings) as address, following(client, address) as stream:
        asking, listened, _ = await asyncio.gather(
            follow_by_asking(client, count),
            stream.sequences(count),
            write_at_once(settings.database_url, client.organization_id, writers=WRITERS, each=EACH),
        )
    assert asking == [*range(1, count + 1)]
    assert listened == asking
    assert await follow_by_asking(client, count) == asking
