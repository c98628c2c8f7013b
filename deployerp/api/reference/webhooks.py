"""What receivers of webhooks get, as OpenAPI tells it: a request of ours for each event type."""

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployerp.domain.events.types import EVENT_TYPES, EventType

Document = dict[str, Any]

# By name: the headers of a request, as Standard Webhooks has them.
_HEADERS = {
    "webhook-id": "The same for each try of an event, to each endpoint: what came before is known by it.",
    "webhook-timestamp": "When this try was signed, in Unix time.",
    "webhook-signature": "Signatures of id, timestamp and body, with a space between: `v1,` and base64 each.",
}
PARAMETERS: Document = {
    name: {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": text}
    for name, text in _HEADERS.items()
}
_ANSWERS = {
    "2XX": {"description": "It has arrived."},
    "410": {"description": "Nothing more is wanted: the endpoint is disabled."},
    "default": {"description": "It is sent again later."},
}


def schemas() -> Document:
    """The bodies of all event types, and what they refer to."""
    messages: list[tuple[type[BaseModel], Literal["serialization"]]] = [
        (each.message, "serialization") for each in EVENT_TYPES.values()
    ]
    _, told = models_json_schema(messages, ref_template="#/components/schemas/{model}")
    return dict(told["$defs"])


def webhooks() -> Document:
    """A path item for each event type, by its name."""
    return {name: {"post": _request(each)} for name, each in EVENT_TYPES.items()}


def _request(type: EventType) -> Document:
    body = {"$ref": f"#/components/schemas/{type.message.__name__}"}
    return {
        "tags": ["events"],
        "summary": type.name,
        "description": f"{type.when}\n\nSent so to endpoints of the format `raw`.",
        "operationId": f"receive_{type.name.replace('.', '_')}",
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in PARAMETERS],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": type.example}},
        },
        "responses": _ANSWERS,
    }
