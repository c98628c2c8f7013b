"""Examples of the contract's documents, made from their schemas and the examples of single fields."""

from typing import Any

from deployerp.api.contract.schemas import EXAMPLE_PARTS

Schema = dict[str, Any]

_BY_FORMAT = {
    "uuid": "01932a7c-8f4e-7c3a-9b2d-5e6f7a8b9c0d",
    "date-time": "2026-11-21T12:00:00Z",
    "email": "ada@example.com",
    "uri": "https://example.com/hooks",
}
_BY_TYPE = {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "null": None}
# Where the name tells more than the type; what goes wrong is not the usual case.
_BY_NAME: dict[str, Any] = {
    "action": "deploy",
    "actorId": "01932a7c-1111-7c3a-9b2d-5e6f7a8b9c0d",
    "address": "203.0.113.7",
    "attempt": 1,
    "deployedAt": None,
    "description": "Tells our chat",
    "detail": None,
    "disabledReason": None,
    "engineVersion": "20.10.24",
    "errorCode": None,
    "errorMessage": None,
    "eventType": "instance.deployed",
    "finishedAt": None,
    "hostKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExam",
    "hostname": "acme.odoo.example.com",
    "image": None,
    "kind": "docker",
    "location": None,
    "name": "Acme",
    "next_cursor": None,
    "odooEdition": "community",
    "odooVersion": "19.0",
    "per_page": 20,
    "request_id": "0f9c2d1e5b7a4c3d8e6f001122334455",
    "requestId": "0f9c2d1e5b7a4c3d8e6f001122334455",
    "resourceType": "instance",
    "retryOf": None,
    "revokedAt": None,
    "size": "small",
    "slug": "acme",
    "startedAt": None,
    "statusMessage": None,
    "title": "Start the containers",
    "url": "https://acme.odoo.example.com",
}


def example_of(schema: Schema, schemas: dict[str, Schema], name: str = "") -> Any:
    """A value that the schema allows; `schemas` are those that it can refer to, `name` that of its field."""
    if schema.get("examples"):
        return schema["examples"][0]
    if "$ref" in schema:
        whole = example_of(schemas[schema["$ref"].rpartition("/")[2]], schemas, name)
        return whole | schema[EXAMPLE_PARTS] if EXAMPLE_PARTS in schema else whole
    if schema.get("enum"):
        return schema["enum"][0]
    for told in ("const", "example"):
        if told in schema:
            return schema[told]
    if name in _BY_NAME and (_BY_NAME[name] is not None or _may_be_null(schema)):
        return _BY_NAME[name]
    if "default" in schema and schema["default"] is not None:
        return schema["default"]
    options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if options:
        return example_of(options[0], schemas, name)
    return _of_type(schema, schemas)


def _may_be_null(schema: Schema) -> bool:
    return {"type": "null"} in schema.get("anyOf", ())


def _of_type(schema: Schema, schemas: dict[str, Schema]) -> Any:
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: example_of(each, schemas, name) for name, each in properties.items()}
    if kind == "array":
        return [example_of(schema["items"], schemas)]
    return _BY_FORMAT.get(schema.get("format", ""), _BY_TYPE[kind])
