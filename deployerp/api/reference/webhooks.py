"""Webhooks in OpenAPI: the request that is sent for each event type."""

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployerp.domain.events.types import EVENT_TYPES, EventType

Document = dict[str, Any]

# By name: the headers of a request, as Standard Webhooks has them.
_HEADERS = {
    "webhook-id": "ID of the event; the same for all attempts, so that duplicates can be recognized.",
    "webhook-timestamp": "Time of the signature, in Unix time (seconds).",
    "webhook-signature": "Signatures of ID, timestamp and body, separated by spaces: `v1,` and base64 each.",
}
PARAMETERS: Document = {
    name: {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": text}
    for name, text in _HEADERS.items()
}
RESPONSES: Document = {
    "WebhookAccepted": {"description": "The event was received."},
    "WebhookGone": {"description": "The receiver wants no more events: the endpoint is disabled."},
    "WebhookFailed": {"description": "The event is sent again later."},
}
_ANSWERS = {
    status: {"$ref": f"#/components/responses/{name}"}
    for status, name in zip(("2XX", "410", "default"), RESPONSES, strict=True)
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
        "summary": f"Event `{type.name}`",
        "description": f"{type.when}\n\nThis is the body for endpoints with the format `raw`.",
        "operationId": f"receive_{type.name.replace('.', '_')}",
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in PARAMETERS],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": type.example}},
        },
        "responses": _ANSWERS,
    }
