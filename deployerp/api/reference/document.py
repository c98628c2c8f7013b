"""The contract as an OpenAPI document: what operations have in common is told here, once."""

from collections.abc import Iterator
from copy import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from deployerp.api.contract.idempotency import HEADER, MAX_LENGTH
from deployerp.api.contract.routes import PUBLIC, SAFE, Route
from deployerp.api.reference import webhooks
from deployerp.api.reference.examples import example_of
from deployerp.core.errors import (
    DeployError,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    PayloadTooLarge,
    Unavailable,
    tree,
)

Document = dict[str, Any]
_JSON = "application/json"
_ERROR = {_JSON: {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}

TAGS = {
    "instances": "One Odoo installation each: its own database, files, containers and host name.",
    "servers": "Machines that host instances.",
    "operations": "What runs, how far it is, how to stop it and how to try again.",
    "providers": "Connected cloud accounts.",
    "events": "The log of facts, in order.",
    "webhook endpoints": "Where events are sent.",
    "webhook deliveries": "One event to one endpoint, and each try of it.",
    "authentication": "Access tokens of people.",
    "api keys": "Keys of programs.",
    "users": "People of the organization, and what they may do.",
    "audit log": "Who has changed what; append-only.",
    "health": "Whether the API lives, and what it is.",
}

_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key (`dep_live_...`), or the access token of a user.",
}
_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
# `(schema, description)` by name.
_HEADERS: dict[str, tuple[Document, str]] = {
    "X-Request-Id": (_TEXT, "The id of the request, also in the log; your own, if it is a sane one."),
    "X-RateLimit-Limit": (_NUMBER, "Requests of the tighter window; absent where there is no limit."),
    "X-RateLimit-Remaining": (_NUMBER, "What is left of it."),
    "X-RateLimit-Reset": (_NUMBER, "When it ends, in Unix time."),
    "RateLimit-Policy": (_TEXT, "All windows: `q` requests in `w` seconds."),
    "RateLimit": (_TEXT, "The tighter window: `r` requests left for `t` seconds."),
    "Retry-After": (_NUMBER, "Seconds until it is worth trying again."),
    "WWW-Authenticate": (_TEXT, "How to prove who you are (RFC 6750)."),
    "ETag": (_TEXT, "What `If-Match` and `If-None-Match` compare."),
    "Location": (_TEXT, "Where to see how it goes on."),
    "Link": (_TEXT, "The pages around: first, prev, next, last (RFC 8288)."),
    "Idempotent-Replayed": (_TEXT, "`true` when the answer was given before; secrets in it are null."),
}
RESPONSE_HEADERS = tuple(_HEADERS)
"""The names of all headers by which answers tell something."""
_EVERY = (
    "X-Request-Id",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "RateLimit-Policy",
    "RateLimit",
)
# `(schema, description)` of the headers that a client may send.
_SENT: dict[str, tuple[Document, str]] = {
    HEADER: (
        _TEXT | {"minLength": 1, "maxLength": MAX_LENGTH, "pattern": "^[\\x21-\\x7e]+$"},
        "Sent again within a day with the same key, the request is not carried out but answered as before.",
    ),
    "If-Match": (_TEXT, "Only if the resource still has this `ETag`."),
    "If-None-Match": (_TEXT, "Only if the resource does not have this `ETag` any more."),
}


def document(app: FastAPI) -> Document:
    """The whole contract."""
    told = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        routes=[_without_head(route) if isinstance(route, Route) else route for route in app.routes],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    components = told["components"]
    components["securitySchemes"] = {"bearer": _BEARER}
    components["headers"] = {
        name: {"schema": schema, "description": text} for name, (schema, text) in _HEADERS.items()
    }
    components["parameters"] = {
        name: {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
        for name, (schema, text) in _SENT.items()
    } | webhooks.PARAMETERS
    components["schemas"] |= webhooks.schemas()
    told["webhooks"] = webhooks.webhooks()
    for route, method, operation in _operations(app, told):
        _complete(route, method, operation, components["schemas"])
    return told


def _without_head(route: Route) -> Route:
    described = copy(route)
    described.methods = route.described_methods
    return described


def _operations(app: FastAPI, told: Document) -> Iterator[tuple[Route, str, Document]]:
    for route in app.routes:
        if isinstance(route, Route) and route.include_in_schema:
            for method in route.described_methods:
                yield route, method, told["paths"][route.path_format][method.lower()]


def _complete(route: Route, method: str, operation: Document, schemas: Document) -> None:
    guarded, unsafe = route.permission != PUBLIC, method not in SAFE
    responses = operation["responses"]
    if guarded:
        operation["security"] = [{"bearer": []}]
        operation["x-permission"] = route.permission
    if route.path.startswith("/v1"):
        _fail(responses, Unavailable)
    if guarded and unsafe:
        _accept(operation, HEADER)
        _fail(responses, IdempotencyInProgress)
        _fail(responses, IdempotencyKeyReused)
    if "412" in responses:
        _accept(operation, "If-Match")
    if unsafe:
        # Also where no body is wanted: what comes is counted before anybody looks at it.
        _fail(responses, PayloadTooLarge)
    if _is_single(route, method):
        _accept(operation, "If-None-Match")
        responses["304"] = {"description": "It still has the `ETag` of `If-None-Match`."}
    if "202" in responses:
        responses["202"]["links"] = _links_of(operation)
    for status, response in responses.items():
        response["headers"] = _headers_of(route, method, status, replayed=guarded and unsafe)
    _give_examples(operation, schemas)


def _is_single(route: Route, method: str) -> bool:
    return method == "GET" and route.path.endswith("/{id}")


def _accept(operation: Document, header: str) -> None:
    operation.setdefault("parameters", []).append({"$ref": f"#/components/parameters/{header}"})


def _fail(responses: Document, error: type[DeployError]) -> None:
    known = responses.setdefault(str(error.status), {"description": "", "content": _ERROR})
    known["description"] = ", ".join(filter(None, (known["description"], f"`{error.code}`")))


# By what an answer is: the name of what it has begun, which operation shows that, and for which parameters.
_BEGUN = {
    "Accepted": ("operation", "get_operation", {"id": "$response.body#/data/operation/id"}),
    "OperationSummary": ("operation", "get_operation", {"id": "$response.body#/data/id"}),
    "DeliverySummary": ("delivery", "get_webhook_delivery", {"id": "$response.body#/data/id"}),
    "Replayed": ("deliveries", "list_webhook_deliveries", {"endpoint_id": "$request.path.id"}),
}


def _links_of(operation: Document) -> Document:
    """How the answer leads to what it has begun."""
    schema = operation["responses"]["202"]["content"][_JSON]["schema"]["$ref"]
    return {
        name: {"operationId": shows, "parameters": parameters}
        for part, (name, shows, parameters) in _BEGUN.items()
        if part in schema
    }


def _headers_of(route: Route, method: str, status: str, *, replayed: bool) -> Document:
    fits = {
        "Retry-After": status == "429" or (replayed and status == "409"),
        "WWW-Authenticate": status == "401",
        "Location": status == "202",
        "Link": status == "200" and route.name.startswith("list_"),
        "ETag": _is_single(route, method) and status in ("200", "304"),
        "Idempotent-Replayed": replayed and status.startswith("2"),
    }
    names = [*_EVERY, *(name for name, does in fits.items() if does)]
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _give_examples(operation: Document, schemas: Document) -> None:
    bodies = [operation["requestBody"]] if "requestBody" in operation else []
    for told in (*bodies, *operation["responses"].values()):
        for media_type, content in told.get("content", {}).items():
            if media_type == _JSON and "schema" in content:
                content.setdefault("example", example_of(content["schema"], schemas))
    for status, response in operation["responses"].items():
        if int(status) >= 400 and _JSON in response.get("content", {}):
            response["content"] = {_JSON: response["content"][_JSON] | {"example": _failure(response)}}


def _failure(response: Document) -> Document:
    """An answer with the first of the codes that the description lists."""
    code = response["description"].split("`")[1]
    error = next(each for each in tree() if each.code == code)
    message = _MESSAGES.get(code) or (error.__doc__ or code).strip().splitlines()[0]
    meta = {"request_id": "0f9c2d1e5b7a4c3d8e6f001122334455", "timestamp": "2026-11-21T12:00:00Z"}
    return {"success": False, "error": {"code": code, "message": message, "details": {}}, "meta": meta}


# Where the words of the class tell of the code, not of a case.
_MESSAGES = {
    "internal_error": "Something went wrong on our side. The log has it under the request's id.",
    "validation_error": "name: must have at least 1 character",
}
