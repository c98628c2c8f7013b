"""Two organizations on one control plane do not see each other."""

from tests.conftest import new_client
from tests.e2e.conftest import House, Shop
from tests.e2e.plane import Plane

COLLECTIONS = (
    "servers",
    "instances",
    "providers",
    "operations",
    "events",
    "webhook-endpoints",
    "webhook-deliveries",
)


async def test_two_organizations_are_separate(plane: Plane, house: House, shop: Shop) -> None:
    stranger = await new_client(plane.client.http, plane.settings)
    for collection in COLLECTIONS:
        assert await plane.client.data("GET", f"/v1/{collection}"), f"the owner sees no {collection}"
        assert await stranger.data("GET", f"/v1/{collection}") == [], f"a stranger sees {collection}"
    for method, path, body in (
        ("GET", f"/v1/servers/{house.id}", None),
        ("DELETE", f"/v1/servers/{house.id}?force=true", None),
        ("POST", f"/v1/servers/{house.id}/actions", {"action": "stop"}),
        ("POST", "/v1/servers", plane.server_body()),
        ("GET", f"/v1/instances/{shop.id}", None),
        ("DELETE", f"/v1/instances/{shop.id}", None),
        ("POST", f"/v1/instances/{shop.id}/actions", {"action": "stop"}),
        ("POST", f"/v1/instances/{shop.id}/admin-password", None),
        ("POST", "/v1/instances", plane.instance_body(house.id)),
        ("GET", f"/v1/operations/{shop.operation['id']}", None),
        ("GET", f"/v1/operations/{shop.operation['id']}/events", None),
        ("POST", f"/v1/operations/{shop.operation['id']}/cancel", None),
        ("POST", f"/v1/operations/{shop.operation['id']}/retry", None),
    ):
        await stranger.call(method, path, body, status=404)
    assert (await plane.get(f"/v1/servers/{house.id}"))["status"] == "running"
    assert (await plane.get(f"/v1/instances/{shop.id}"))["status"] == "running"
