"""Which events an endpoint asks for, and what it is sent them with."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from deployerp.core.errors import InvalidState
from deployerp.core.secrets import Vault, new_encryption_key
from deployerp.database.base import new_id, utc_now
from deployerp.domain.events.types import EVENT_TYPES
from deployerp.domain.webhooks.endpoints import WebhookEndpoint, added_headers, signing_secrets

VAULT = Vault([SecretStr(new_encryption_key())])


def endpoint(types: list[str], **more: Any) -> WebhookEndpoint:
    given = {"sealed_secret": "-"} | more
    return WebhookEndpoint(organization_id=new_id(), url="https://example.com/", types=types, **given)


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        (["*"], set(EVENT_TYPES)),
        (["instance.deployed"], {"instance.deployed"}),
        (["server.*"], {each for each in EVENT_TYPES if each.startswith("server.")}),
        (["*_failed"], {each for each in EVENT_TYPES if each.endswith("_failed")}),
        (["instance.deployed", "instance.*ed"], {e for e in EVENT_TYPES if e.startswith("instance.")}),
        (["instance"], set()),
        (["Instance.*"], set()),
        ([], set()),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, list) else "",
)
def test_patterns_say_which(types: list[str], wanted: set[str]) -> None:
    assert {each for each in EVENT_TYPES if endpoint(types).wants(each)} == wanted


def test_a_disabled_one_wants_nothing() -> None:
    assert not any(endpoint(["*"], enabled=False).wants(each) for each in EVENT_TYPES)


def test_one_that_is_disabled_or_deleted_is_not_open() -> None:
    endpoint(["*"]).need_open()
    with pytest.raises(InvalidState, match=r"disabled: enable it first"):
        endpoint(["*"], enabled=False).need_open()
    with pytest.raises(InvalidState, match=r"disabled \(It answered 410\): enable it first"):
        endpoint(["*"], enabled=False, disabled_reason="It answered 410").need_open()
    with pytest.raises(InvalidState, match=r"deleted: make another"):
        endpoint(["*"], enabled=False, deleted_at=utc_now()).need_open()


def test_the_secret_before_a_rotation_signs_for_as_long_as_it_may() -> None:
    now = utc_now()
    new, old = VAULT.seal("whsec_new"), VAULT.seal("whsec_old")
    assert signing_secrets(endpoint([], sealed_secret=new), VAULT, now) == ["whsec_new"]
    rotated = endpoint([], sealed_secret=new, sealed_old_secret=old, old_secret_until=now)
    assert signing_secrets(rotated, VAULT, now - timedelta(microseconds=1)) == ["whsec_new", "whsec_old"]
    assert signing_secrets(rotated, VAULT, now) == ["whsec_new"]


def test_added_headers_come_back_as_they_were_sealed() -> None:
    headers = {"X-Second": "2", "Authorization": "Bearer hunter2"}
    assert added_headers(endpoint([], sealed_headers=VAULT.seal_mapping(headers)), VAULT) == headers
    assert added_headers(endpoint([]), VAULT) == {}
