"""Examples of the contract's documents, made from their schemas and the examples of single fields."""

from typing import Any

from deployerp.api.contract.schemas import EXAMPLE_PARTS

Schema = dict[str, Any]

_BY_TYPE = {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "null": None}


def example_of(schema: Schema, schemas: dict[str, Schema]) -> Any:
    """A value that the schema allows; `schemas` are those that it can refer to."""
    if schema.get("examples"):
        return schema["examples"][0]
    if "$ref" in schema:
        whole = example_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
        return whole | schema[EXAMPLE_PARTS] if EXAMPLE_PARTS in schema else whole
    if schema.get("enum"):
        return schema["enum"][0]
    for told in ("const", "example"):
        if told in schema:
            return schema[told]
    if "default" in schema and schema["default"] is not None:
        return schema["default"]
    options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if options:
        return example_of(options[0], schemas)
    return _of_type(schema, schemas)


def _of_type(schema: Schema, schemas: dict[str, Schema]) -> Any:
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: example_of(each, schemas) for name, each in properties.items()}
    if kind == "array":
        return [example_of(schema["items"], schemas)]
    return _BY_TYPE[kind]
