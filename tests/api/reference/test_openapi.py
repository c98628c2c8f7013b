"""The contract is committed, complete and spelled the way clients expect it."""

import json
import re
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import jsonschema_rs
import pytest

from deployerp.domain.instances import INSTANCE
from deployerp.domain.servers import SERVER
from deployerp.domain.tables import lifecycles
from tests.api.calls import referred

ROOT = Path(__file__).parents[3]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "openapi.py"))
DOCUMENT = json.loads(SCRIPT["document"]())
OPERATIONS = [each for every in DOCUMENT["paths"].values() for each in every.values()]
CALLS = [
    each for path, every in DOCUMENT["paths"].items() if path.startswith("/v1/") for each in every.values()
]
SCHEMAS = DOCUMENT["components"]["schemas"]
# The envelope is in snake_case, as the introduction to the API has it.
ENVELOPE = re.compile("(List)?(Envelope|Meta)|ErrorEnvelope|ErrorBody|(List)?Envelope_.*")


def test_the_committed_contract_is_what_the_code_does() -> None:
    assert (ROOT / "openapi.json").read_text() == SCRIPT["document"](), "run `make openapi` and commit it"


def test_operation_ids_are_unique() -> None:
    ids = Counter(each["operationId"] for each in OPERATIONS)
    assert max(ids.values()) == 1, ids


GUARDED = [each for each in CALLS if "x-permission" in each]
# The ways to an access token, for those who have none; one's own account; what the contract says itself.
PUBLIC = {
    "create_token",
    "refresh_token",
    "revoke_token",
    "set_password",
    "get_me",
    "change_own_password",
    "get_event_types",
}


def test_what_needs_no_permission_is_known() -> None:
    assert {each["operationId"] for each in CALLS} - {each["operationId"] for each in GUARDED} <= PUBLIC


@pytest.mark.parametrize("operation", GUARDED, ids=lambda operation: operation["operationId"])
def test_every_call_tells_its_errors_and_how_it_is_authorised(operation: dict) -> None:
    answers = operation["responses"]
    assert {"401", "403", "422", "500"} <= answers.keys()
    path = next(path for path, every in DOCUMENT["paths"].items() if operation in every.values())
    if "{id}" in path:
        assert "404" in answers
    if "202" in answers and "{id}" in path:
        assert "409" in answers
    for status, answer in answers.items():
        if int(status) >= 400:
            content = referred(answer)["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorEnvelope"}
            codes = re.findall(r"^`([a-z_]+)`: \w", referred(answer)["description"], re.MULTILINE)
            assert codes == [*content["examples"]]
    assert operation["security"] == [{"bearer": []}]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation["operationId"])
def test_every_operation_says_what_it_does(operation: dict) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert set(operation["tags"]) <= {each["name"] for each in DOCUMENT["tags"] if each["description"]}


def contents() -> Iterator[tuple[str, dict]]:
    webhooks = [each for every in DOCUMENT["webhooks"].values() for each in every.values()]
    for operation in (*OPERATIONS, *webhooks):
        bodies = {"body": operation["requestBody"]} if "requestBody" in operation else {}
        for where, told in (bodies | operation["responses"]).items():
            if "application/json" in referred(told).get("content", {}):
                yield f"{operation['operationId']}-{where}", referred(told)["content"]["application/json"]


def examples_of(content: dict) -> list:
    if "example" in content:
        return [content["example"]]
    return [referred(each)["value"] for each in content.get("examples", {}).values()]


@pytest.mark.parametrize(
    ("where", "content"), list(contents()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_body_has_an_example_that_its_schema_allows(where: str, content: dict) -> None:
    schema = content["schema"] | {"components": DOCUMENT["components"]}
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    assert examples_of(content)
    for example in examples_of(content):
        validator.validate(example)


PROPERTIES = [
    (f"{name}.{field}", schema)
    for name, each in SCHEMAS.items()
    for field, schema in each.get("properties", {}).items()
]


@pytest.mark.parametrize(("where", "schema"), PROPERTIES, ids=[where for where, _ in PROPERTIES])
def test_every_field_has_a_description_and_an_example(where: str, schema: dict) -> None:
    assert schema.get("description")
    # The example of an object is those of its fields.
    is_object = "$ref" in schema or "$ref" in schema.get("items", {})
    assert is_object or schema.get("examples")
    for example in schema.get("examples", ()):
        inner = schema | {"components": DOCUMENT["components"]}
        jsonschema_rs.validator_for(inner, validate_formats=True).validate(example)


def test_the_document_is_small() -> None:
    size = (ROOT / "openapi.json").stat().st_size
    assert size / len(OPERATIONS) <= 7_000, f"{size / len(OPERATIONS):.0f} bytes per operation"


def test_the_document_has_an_introduction() -> None:
    headings = set(re.findall("^## (.+)$", DOCUMENT["info"]["description"], re.MULTILINE))
    assert headings >= {"Authentication", "Responses", "Errors", "Pagination", "Idempotency"}
    assert DOCUMENT["servers"]


def test_aliases_name_their_operation() -> None:
    aliases = [path for path in DOCUMENT["paths"] if path.endswith("/control")]
    assert aliases
    for path in aliases:
        original = path.removesuffix("control") + "actions"
        assert f"Alias of `POST {original}`" in DOCUMENT["paths"][path]["post"]["description"]


def test_what_is_accepted_leads_to_what_it_has_begun() -> None:
    shown_by = {"operation": "get_operation", "delivery": "get_webhook_delivery"}
    for operation in OPERATIONS:
        if "202" in operation["responses"]:
            answer = operation["responses"]["202"]
            ((name, link),) = answer["links"].items()
            if operation["operationId"] == "replay_events":
                # Its answer tells how many deliveries it has begun, and the list has them.
                assert link["operationId"] == "list_webhook_deliveries"
                assert link["parameters"] == {"endpoint_id": "$request.path.id"}
                continue
            assert link["operationId"] == shown_by[name]
            (found,) = examples_of(answer["content"]["application/json"])
            about = found["data"]
            if "operation" in about:
                # The example tells one story.
                begun = about["operation"]
                kind = operation["tags"][0].removesuffix("s")
                assert (begun["resourceType"], begun["resourceId"]) == (kind, about["id"])
                assert begun["action"] == lifecycles()[kind].first.name
                assert (begun["state"], begun["startedAt"], begun["finishedAt"]) == ("pending", None, None)
                assert (about["status"], about.get("deployedAt")) == ("pending", None)
            for part in link["parameters"]["id"].removeprefix("$response.body#/").split("/"):
                found = found[part]
            assert UUID(found)


def test_every_change_may_be_too_large() -> None:
    changes = [
        operation["responses"].keys()
        for every in DOCUMENT["paths"].values()
        for method, operation in every.items()
        if method != "get"
    ]
    assert all("413" in responses for responses in changes)


def test_what_may_be_sent_again_says_so() -> None:
    for path, every in DOCUMENT["paths"].items():
        for method, operation in every.items():
            sent = {each.get("$ref", "").rpartition("/")[2] for each in operation.get("parameters", [])}
            changes = method in {"post", "put", "patch", "delete"} and "x-permission" in operation
            assert ("Idempotency-Key" in sent) is changes, f"{method} {path}"
            assert ("If-Match" in sent) is (changes and method in {"patch", "delete"}), f"{method} {path}"


def test_every_reference_leads_somewhere() -> None:
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT)):
        found = DOCUMENT
        for part in reference.split("/"):
            found = found[part]


@pytest.mark.parametrize("name", [name for name in SCHEMAS if not ENVELOPE.fullmatch(name)])
def test_every_field_is_in_camel_case(name: str) -> None:
    fields = SCHEMAS[name].get("properties", {})
    assert fields
    assert [field for field in fields if not re.fullmatch("[a-z]+([A-Z][a-z]*)*", field)] == []


@pytest.mark.parametrize(
    "name", [name for name in SCHEMAS if re.search("Create$|Update$|Request$|Given$", name)]
)
def test_what_clients_send_is_closed_to_unknown_fields(name: str) -> None:
    assert SCHEMAS[name]["additionalProperties"] is False


def test_states_are_those_of_the_lifecycles() -> None:
    for name, lifecycle in (("ServerRead", SERVER), ("InstanceRead", INSTANCE)):
        assert SCHEMAS[name]["properties"]["status"]["enum"] == list(lifecycle.states)
