"""The OpenAPI document: what operations have in common is a component, which they refer to."""

import re
from collections.abc import Iterator
from copy import copy

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from deployerp.api.contract.idempotency import HEADER
from deployerp.api.contract.lists import shared_parameters
from deployerp.api.contract.routes import PUBLIC, SAFE, Route
from deployerp.api.reference import components, introduction, webhooks
from deployerp.api.reference.components import JSON, RESPONSE_HEADERS, Document, reference
from deployerp.api.reference.examples import example_of
from deployerp.core.errors import (
    DeployError,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    PayloadTooLarge,
    Unavailable,
)

__all__ = ["RESPONSE_HEADERS", "document"]
_DEFAULT_DESCRIPTION = "Successful Response"
_SUCCESSES = {
    "200": "The request succeeded.",
    "201": "The resource was created.",
    "202": "The request was accepted; the work continues in the background.",
    "204": "The request succeeded. The response has no body.",
}


def document(app: FastAPI) -> Document:
    """The whole document."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=introduction.DESCRIPTION,
        routes=[_without_head(route) if isinstance(route, Route) else route for route in app.routes],
        tags=[{"name": name, "description": text} for name, text in introduction.TAGS.items()],
        servers=introduction.SERVERS,
    )
    shared = made["components"]
    shared["schemas"] |= webhooks.schemas()
    shared["securitySchemes"] = {"bearer": components.BEARER}
    shared["headers"] = components.headers()
    shared["parameters"] = components.parameters() | shared_parameters() | webhooks.PARAMETERS
    shared["responses"] = {"NotModified": components.not_modified()} | webhooks.RESPONSES
    shared["examples"] = {}
    made["webhooks"] = webhooks.webhooks()
    for schema in shared["schemas"].values():
        _remove_titles(schema)
    for route, method, operation in _operations(app, made):
        _complete(route, method, operation, shared)
    return made


def _without_head(route: Route) -> Route:
    described = copy(route)
    described.methods = route.described_methods
    return described


def _remove_titles(schema: Document) -> None:
    # They repeat the names of the properties.
    for each in schema.get("properties", {}).values():
        each.pop("title", None)


def _operations(app: FastAPI, made: Document) -> Iterator[tuple[Route, str, Document]]:
    for route in app.routes:
        if isinstance(route, Route) and route.include_in_schema:
            for method in route.described_methods:
                yield route, method, made["paths"][route.path_format][method.lower()]


def _complete(route: Route, method: str, operation: Document, shared: Document) -> None:
    guarded, unsafe = route.permission != PUBLIC, method not in SAFE
    if guarded:
        operation["security"] = [{"bearer": []}]
        operation["x-permission"] = route.permission
    for error in _common_errors(route, guarded=guarded, unsafe=unsafe):
        _fail(operation["responses"], error)
    for header, is_accepted in (
        (HEADER, guarded and unsafe),
        ("If-Match", "412" in operation["responses"]),
        ("If-None-Match", _is_single(route, method)),
    ):
        if is_accepted:
            operation.setdefault("parameters", []).append(reference("parameters", header))
    _describe_successes(route, method, operation, replayed=guarded and unsafe)
    _share(operation, shared)
    if _is_single(route, method):
        operation["responses"]["304"] = reference("responses", "NotModified")


def _common_errors(route: Route, *, guarded: bool, unsafe: bool) -> Iterator[type[DeployError]]:
    if route.path.startswith("/v1"):
        yield Unavailable
    if guarded and unsafe:
        yield IdempotencyInProgress
        yield IdempotencyKeyReused
    if unsafe:
        # Also without a body: the size is checked before anything else.
        yield PayloadTooLarge


def _describe_successes(route: Route, method: str, operation: Document, *, replayed: bool) -> None:
    responses = operation["responses"]
    if "202" in responses:
        responses["202"]["links"] = _links_of(operation)
    for status in [each for each in responses if each < "400"]:
        responses[status]["headers"] = _headers_of(route, method, status, replayed=replayed)
        if responses[status]["description"] == _DEFAULT_DESCRIPTION:
            responses[status]["description"] = _SUCCESSES[status]


def _is_single(route: Route, method: str) -> bool:
    return method == "GET" and route.path.endswith("/{id}")


def _fail(responses: Document, error: type[DeployError]) -> None:
    known = responses.setdefault(str(error.status), {"description": ""})
    known["description"] += f"`{error.code}`"


# By the schema of a response: the name of what it has started, the operation that shows it, its parameters.
_STARTED = {
    "Accepted": ("operation", "get_operation", {"id": "$response.body#/data/operation/id"}),
    "OperationSummary": ("operation", "get_operation", {"id": "$response.body#/data/id"}),
    "DeliverySummary": ("delivery", "get_webhook_delivery", {"id": "$response.body#/data/id"}),
    "Replayed": ("deliveries", "list_webhook_deliveries", {"endpoint_id": "$request.path.id"}),
}


def _links_of(operation: Document) -> Document:
    """Links from a response to what it has started."""
    schema = operation["responses"]["202"]["content"][JSON]["schema"]["$ref"]
    return {
        name: {"operationId": shows, "parameters": parameters}
        for part, (name, shows, parameters) in _STARTED.items()
        if part in schema
    }


def _headers_of(route: Route, method: str, status: str, *, replayed: bool) -> Document:
    fits = {
        "Location": status == "202",
        "Link": status == "200" and route.name.startswith("list_"),
        "ETag": _is_single(route, method) and status == "200",
        "Idempotent-Replayed": replayed and status.startswith("2"),
    }
    return components.header_references(name for name, does in fits.items() if does)


def _share(operation: Document, shared: Document) -> None:
    """Puts what operations have in common into components: parameters, errors and examples."""
    for number, parameter in enumerate(operation.get("parameters", ())):
        if (parameter.get("name"), parameter.get("in")) == ("id", "path"):
            operation["parameters"][number] = reference("parameters", "id")
        parameter.get("schema", {}).pop("title", None)
    bodies = [operation["requestBody"]] if "requestBody" in operation else []
    for status, response in operation["responses"].items():
        if status < "400":
            bodies.append(response)
        else:
            codes = re.findall("`([a-z_]+)`", response["description"])
            operation["responses"][status] = components.error_reference(codes, shared)
    for body in bodies:
        content = body.get("content", {}).get(JSON, {})
        if "$ref" in content.get("schema", {}):
            name = content["schema"]["$ref"].rpartition("/")[2]
            example = example_of(content["schema"], shared["schemas"])
            shared["examples"].setdefault(name, {"value": example})
            content["examples"] = {"default": reference("examples", name)}
