"""Which events an endpoint asks for."""

import pytest

from deployerp.domain.base import new_id
from deployerp.domain.lifecycles import event_types
from deployerp.domain.webhook_endpoints import WebhookEndpoint


def endpoint(types: list[str], *, enabled: bool = True) -> WebhookEndpoint:
    return WebhookEndpoint(
        organization_id=new_id(),
        url="https://example.com/",
        types=types,
        sealed_secret="-",
        enabled=enabled,
    )


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        (["*"], set(event_types())),
        (["instance.deployed"], {"instance.deployed"}),
        (["server.*"], {each for each in event_types() if each.startswith("server.")}),
        (["*_failed"], {each for each in event_types() if each.endswith("_failed")}),
        (["instance.deployed", "instance.*ed"], {e for e in event_types() if e.startswith("instance.")}),
        (["instance"], set()),
        (["Instance.*"], set()),
        ([], set()),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, list) else "",
)
def test_patterns_say_which(types: list[str], wanted: set[str]) -> None:
    assert {each for each in event_types() if endpoint(types).wants(each)} == wanted


def test_a_disabled_one_wants_nothing() -> None:
    assert not any(endpoint(["*"], enabled=False).wants(each) for each in event_types())
