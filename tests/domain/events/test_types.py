"""The catalogue has every event that the code writes, and says of each what is told."""

import ast
import importlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import jsonschema_rs
import pytest

import deployerp
from deployerp.domain.events.types import EVENT_TYPES, PINGED, EventResource, EventType, known_pattern
from deployerp.domain.instances import Instance
from deployerp.domain.servers import Server
from deployerp.domain.tables import lifecycles
from deployerp.domain.webhooks.endpoints import WebhookEndpoint

PACKAGE = Path(deployerp.__file__).parent
every_type = pytest.mark.parametrize("type", EVENT_TYPES.values(), ids=EVENT_TYPES)
OF_LIFECYCLES = {
    name
    for lifecycle in lifecycles().values()
    for action in lifecycle.actions.values()
    for name in (action.event, lifecycle.failure_event(action))
}
ANNOUNCED = {"backup.completed", "backup.failed"}


def written() -> Iterator[str]:
    """The types of the events that the code writes, as its calls name them."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            if called == "write_event":
                yield from types_of(node.args[1], ".".join(parts))
            elif called == "write_events" and path.name == "settling.py":
                yield from OF_LIFECYCLES
            elif called == "write_ping":
                yield PINGED


def types_of(argument: ast.expr, module: str) -> set[str]:
    match argument:
        case ast.Constant(str(name)):
            return {name}
        case ast.Name(name):
            return {getattr(importlib.import_module(module), name)}
        # Of an action, or of its failure: any of them.
        case ast.Attribute(attr="event") | ast.Call(ast.Attribute(attr="failure_event")):
            return OF_LIFECYCLES
    raise AssertionError(f"{module}: which type of event is {ast.unparse(argument)}?")


def test_what_is_written_and_what_is_announced_is_all_that_there_is() -> None:
    announced = {name for name, each in EVENT_TYPES.items() if each.announced}
    assert announced == ANNOUNCED
    assert set(written()) == EVENT_TYPES.keys() - announced


def test_a_type_that_nobody_could_know_of_would_be_found() -> None:
    with pytest.raises(AssertionError, match=r"which type of event is name\(\)"):
        types_of(ast.parse("name()", mode="eval").body, "x")


@every_type
def test_a_type_is_about_its_resource_and_says_when(type: EventType) -> None:
    resource, _, happened = type.name.partition(".")
    assert resource in EventResource.__args__
    assert happened
    assert type.when.endswith(".")


@every_type
def test_the_example_is_what_the_schema_allows(type: EventType) -> None:
    validator = jsonschema_rs.validator_for(type.json_schema, validate_formats=True)
    validator.validate(type.example)
    assert datetime.fromisoformat(type.example["timestamp"])
    for broken in (
        type.example | {"type": "instance.exploded"},
        type.example | {"timestamp": "yesterday"},
        {name: value for name, value in type.example.items() if name != "data"},
        type.example | {"data": type.example["data"] | {"id": 7}},
        type.example
        | {"data": type.example["data"] | dict.fromkeys(("status", "enabled", "resourceType"), "exploded")},
    ):
        assert not validator.is_valid(broken)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("server.created", Server),
        ("instance.deployed", Instance),
        ("webhook_endpoint.pinged", WebhookEndpoint),
    ],
)
def test_what_is_told_is_what_the_record_has(name: str, model: type) -> None:
    sample = EVENT_TYPES[name].sample
    secrets = {"url": "https://example.com/hunter2", "sealed_secret": "hunter2"}
    record = model(**secrets | sample.model_dump())
    told = EVENT_TYPES[name].describe(record)
    assert told == EVENT_TYPES[name].example["data"]
    assert "hunter2" not in str(told)


@pytest.mark.parametrize(
    "pattern", ["*", "*.deployed", "instance.*", "backup.failed", "*_failed", "server.*ed"]
)
def test_a_pattern_that_some_type_fits_is_known(pattern: str) -> None:
    assert known_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "instances.*", "instance", "instance.", "deployed", "Instance.*"])
def test_a_pattern_that_no_type_fits_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="matches no event type"):
        known_pattern(pattern)
