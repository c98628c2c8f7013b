"""The event log and the deliveries that come of it, through the API."""

from tests.conftest import Client, Fleet


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
        "status": "failed",
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
