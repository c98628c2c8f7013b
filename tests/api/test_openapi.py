"""The contract is committed, complete and spelled the way clients expect it."""

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

from deployerp.domain.lifecycles import INSTANCE, SERVER

ROOT = Path(__file__).parent.parent.parent
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


@pytest.mark.parametrize("operation", CALLS, ids=lambda operation: operation["operationId"])
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
            schema = answer["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}
            assert re.fullmatch(r"`[a-z_]+`(, `[a-z_]+`)*", answer["description"])
    assert operation["security"] == [{"HTTPBearer": []}]


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
