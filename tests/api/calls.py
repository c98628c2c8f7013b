"""Every operation of the document, and for each that needs a caller a request that its owner may make."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from deployerp.api.app import create_app
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from tests.conftest import Fleet

DOCUMENT = create_app(Settings.model_construct()).openapi()

# What goes into requests and must not come out anywhere.
CREDENTIAL, VARIABLE = "dop_v1_hunter2credential", "hunter2variable"
HEADER = "Bearer hunter2header"


@dataclass(frozen=True)
class Call:
    """An operation of the document."""

    name: str
    method: str
    path: str
    described: dict[str, Any]

    @property
    def permission(self) -> str | None:
        """None where none is asked for."""
        permission: str | None = self.described.get("x-permission")
        return permission

    @property
    def is_safe(self) -> bool:
        return self.method == "GET"

    @property
    def is_list(self) -> bool:
        schema = self.described["responses"].get("200", {}).get("content", {}).get("application/json", {})
        return "ListEnvelope" in str(schema.get("schema")) or "Envelope_list" in str(schema.get("schema"))

    @property
    def takes_ids(self) -> bool:
        """Whether its path or its body names other objects."""
        body = self.described.get("requestBody", {}).get("content", {}).get("application/json", {})
        schema = DOCUMENT["components"]["schemas"].get(body.get("schema", {}).get("$ref", "").split("/")[-1])
        return "{id}" in self.path or "'format': 'uuid'" in str(schema)


def resolved(described: dict[str, Any]) -> dict[str, Any]:
    """An operation with its parameters and responses in place of references to them."""
    parameters = [referred(each) for each in described.get("parameters", ())]
    responses = {status: referred(each) for status, each in described["responses"].items()}
    return described | {"parameters": parameters, "responses": responses}


def referred(part: dict[str, Any]) -> dict[str, Any]:
    """What a reference leads to; anything else as it is."""
    found: dict[str, Any] = DOCUMENT if "$ref" in part else part
    for name in part.get("$ref", "#").split("/")[1:]:
        found = found[name]
    return found


CALLS = [
    Call(described["operationId"], method.upper(), path, resolved(described))
    for path, every in DOCUMENT["paths"].items()
    for method, described in every.items()
]
GUARDED = [call for call in CALLS if call.permission is not None]


@dataclass(frozen=True)
class Ask:
    """What a request needs besides its operation."""

    id: str | None = None
    body: Any = None

    def path(self, call: Call) -> str:
        return call.path.format(id=self.id)

    @property
    def ids(self) -> list[str]:
        """All that it names."""
        named = [value for value in (self.body or {}).values() if _is_id(value)]
        return [self.id, *named] if self.id else named

    def with_other_ids(self) -> "Ask":
        """The same about what nobody has."""
        body = self.body and {
            name: str(uuid.uuid4()) if _is_id(value) else value for name, value in self.body.items()
        }
        return Ask(self.id and str(uuid.uuid4()), body)


Preparation = Callable[[Fleet], Awaitable[Ask]]


def _is_id(value: object) -> bool:
    try:
        return bool(uuid.UUID(str(value)))
    except ValueError:
        return False


def _new_name() -> str:
    return f"n-{uuid.uuid4().hex[:12]}"


def _made(path: str, **body: Any) -> Preparation:
    """About something that has been made with this request."""
    return _about(path, None, **body)


def _about(path: str, then: Any, **body: Any) -> Preparation:
    async def prepare(fleet: Fleet) -> Ask:
        named = {name: value() if callable(value) else value for name, value in body.items()}
        return Ask((await fleet.client.data("POST", path, named))["id"], then)

    return prepare


def _sends(**body: Any) -> Preparation:
    """Makes something that needs nothing else."""

    async def prepare(_: Fleet) -> Ask:
        return Ask(None, {name: value() if callable(value) else value for name, value in body.items()})

    return prepare


async def _nothing(_: Fleet) -> Ask:
    return Ask()


async def _new_server(fleet: Fleet) -> Ask:
    provider = await fleet.provider(_new_name())
    return Ask(None, {"name": _new_name(), "providerId": provider["id"], "size": "small"})


def _server(body: Any = None) -> Preparation:
    async def prepare(fleet: Fleet) -> Ask:
        return Ask((await fleet.server(_new_name()))["id"], body)

    return prepare


async def _new_instance(fleet: Fleet) -> Ask:
    variables = {"PLAIN": "seen", "HIDDEN": {"value": VARIABLE, "secret": True}}
    body = {"name": "Acme", "slug": _new_name(), "odooVersion": "19.0", "envVars": variables}
    return Ask(None, body | {"serverId": (await fleet.server(_new_name()))["id"]})


def _instance(body: Any = None) -> Preparation:
    async def prepare(fleet: Fleet) -> Ask:
        server = await fleet.server(_new_name())
        return Ask((await fleet.instance(server["id"]))["id"], body)

    return prepare


def _operation(outcome: Literal["succeeded", "failed"] | None) -> Preparation:
    """About one with this outcome; one without is pending."""

    async def prepare(fleet: Fleet) -> Ask:
        begun = await fleet.begin_server(_new_name())
        if outcome is not None:
            await fleet.end(begun, outcome)
        return Ask(begun["operation"]["id"])

    return prepare


async def _delivery(fleet: Fleet) -> Ask:
    endpoint = await fleet.client.data("POST", "/v1/webhook-endpoints", {"url": "https://example.com/"})
    await fleet.server(_new_name())
    path = f"/v1/webhook-deliveries?endpoint_id={endpoint['id']}"
    return Ask((await fleet.client.data("GET", path))[0]["id"])


async def _replay(fleet: Fleet) -> Ask:
    await fleet.server(_new_name())
    endpoint = await fleet.client.data("POST", "/v1/webhook-endpoints", {"url": "https://example.com/"})
    return Ask(endpoint["id"], {"since": (utc_now() - timedelta(hours=1)).isoformat()})


async def _event(fleet: Fleet) -> Ask:
    await fleet.server(_new_name())
    return Ask((await fleet.client.data("GET", "/v1/events"))[0]["id"])


async def _entry(fleet: Fleet) -> Ask:
    await fleet.provider(_new_name())
    return Ask((await fleet.client.data("GET", "/v1/audit-log"))[0]["id"])


def _email() -> str:
    return f"{_new_name()}@example.com"


_PROVIDER = {"name": _new_name, "kind": "digitalocean", "credentials": {"token": CREDENTIAL}}
_ENDPOINT = {
    "url": "https://example.com/hooks",
    "types": ["instance.*"],
    "headers": {"Authorization": HEADER},
}
_KEY = {"name": _new_name, "level": "read"}
_USER = {"email": _email, "name": "Ada", "role": "viewer"}

# By operation id: brings about what the request needs, and says what it is.
PREPARATIONS: dict[str, Preparation] = {
    "list_providers": _nothing,
    "create_provider": _sends(**_PROVIDER),
    "get_provider": _made("/v1/providers", **_PROVIDER),
    "delete_provider": _made("/v1/providers", **_PROVIDER),
    "list_servers": _nothing,
    "create_server": _new_server,
    "get_server": _server(),
    "act_on_server": _server({"action": "restart"}),
    "delete_server": _server(),
    "list_instances": _nothing,
    "create_instance": _new_instance,
    "get_instance": _instance(),
    "update_instance": _instance({"name": "Mine now"}),
    "reveal_admin_password": _instance(),
    "act_on_instance": _instance({"action": "restart"}),
    "control_instance": _instance({"action": "stop"}),
    "delete_instance": _instance(),
    "list_operations": _nothing,
    "get_operation": _operation("succeeded"),
    "stream_operation": _operation("succeeded"),
    "cancel_operation": _operation(None),
    "retry_operation": _operation("failed"),
    "list_events": _nothing,
    "get_event": _event,
    "stream_events": _nothing,
    "list_webhook_endpoints": _nothing,
    "create_webhook_endpoint": _sends(**_ENDPOINT),
    "get_webhook_endpoint": _made("/v1/webhook-endpoints", **_ENDPOINT),
    "update_webhook_endpoint": _about(
        "/v1/webhook-endpoints", {"headers": {"X-Other": HEADER}, "format": "slack"}, **_ENDPOINT
    ),
    "delete_webhook_endpoint": _made("/v1/webhook-endpoints", **_ENDPOINT),
    "rotate_webhook_secret": _about("/v1/webhook-endpoints", {"overlapHours": 1}, **_ENDPOINT),
    "ping_webhook_endpoint": _made("/v1/webhook-endpoints", **_ENDPOINT),
    "replay_events": _replay,
    "list_webhook_deliveries": _nothing,
    "get_webhook_delivery": _delivery,
    "resend_webhook_delivery": _delivery,
    "list_audit_log": _nothing,
    "get_audit_entry": _entry,
    "list_api_keys": _nothing,
    "create_api_key": _sends(**_KEY),
    "get_api_key": _made("/v1/api-keys", **_KEY),
    "update_api_key": _about("/v1/api-keys", {"name": "Mine now"}, **_KEY),
    "revoke_api_key": _made("/v1/api-keys", **_KEY),
    "list_users": _nothing,
    "create_user": _sends(**_USER),
    "get_user": _made("/v1/users", **_USER),
    "reset_password": _made("/v1/users", **_USER),
    "update_user": _about("/v1/users", {"role": "developer"}, **_USER),
    "remove_user": _made("/v1/users", **_USER),
}
